"""Pages in a real browser: no error on the console, no request, every figure there, nothing wider than a phone,
readable in light and dark, printable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstdistill.suite.page import write_suite_page
from mstdistill.suite.plan import load_suite, plan
from mstdistill.suite.tables import judge

from .test_suite import record, write_suite

pytestmark = pytest.mark.slow
FAST = ["cotrain.epochs=2", "specialise.epochs=1", "distill.epochs=2", "alone.epochs=2", "run.trackers=[]",
        "data.limit=300"]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system; where CI demands it, its absence is a failure."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not found:
        message = "needs a browser: apt-get install chromium"
        if os.environ.get("MSTDISTILL_REQUIRE_BROWSER"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"], timeout=60_000)
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from typer.testing import CliRunner

    from mstdistill.cli import app

    folder = tmp_path_factory.mktemp("pages")
    run = folder / "run"
    assert CliRunner().invoke(app, ["train", "av-digits", "--out", str(run), *FAST]).exit_code == 0
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    grid = plan(load_suite(str(write_suite(folder))))
    made = {cell: record(0.5 + 0.01 * number) for number, cell in enumerate(grid.cells)}
    return {"run": run / "report.html", "suite": write_suite_page(judge(grid, made), folder)}


@pytest.mark.parametrize("name", ["run", "suite"])
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_page_opens(name: str, width: int, scheme: str, browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page, said, asked = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[name].as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
    boxes = page.eval_on_selector_all(
        "figure, figure svg, img", "all => all.map(one => (b => [b.width, b.height])(one.getBoundingClientRect()))"
    )
    assert len(boxes) >= {"run": 20, "suite": 2}[name]
    assert all(w > 20 and h > 20 for w, h in boxes)
    assert all(page.eval_on_selector_all("img", "all => all.map(one => one.complete && one.naturalWidth > 0)"))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert _contrast(*page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")) >= 4.5
    dark = _luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.2
    assert dark is (scheme == "dark")
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes()[:5] == b"%PDF-"
    context.close()


def test_a_chart_of_a_suite_is_a_picture_of_its_own(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto((pages["suite"].parent / "av-digits-image.svg").as_uri())
    assert page.locator("svg text", has_text="MST, top-1").count() == 1
    fill = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert _contrast(fill, "rgb(255, 255, 255)") >= 4.5
    page.close()


def _luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)" (WCAG 2)."""
    parts = np.array([float(x) for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)
