"""Pages in a real browser: no error on the console, no request, every figure there, nothing wider than a phone,
readable in light and dark, printable."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstdistill.report import budget, live
from mstdistill.report.watch import server
from mstdistill.suite.page import write_suite_page
from mstdistill.suite.plan import load_suite, plan
from mstdistill.suite.tables import judge

from .test_suite import record, write_suite

pytestmark = pytest.mark.slow
FAST = ["cotrain.epochs=2", "specialise.epochs=1", "distill.epochs=2", "alone.epochs=2", "run.trackers=[]",
        "data.limit=300"]  # fmt: skip


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
    page.emulate_media(media="print")
    assert _luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.9
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes()[:5] == b"%PDF-"
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_run_is_watched(
    width: int, scheme: str, browser: Any, pages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is renewed loads itself anew until the run is finished, then stays."""
    monkeypatch.setattr(live, "RELOAD_SECONDS", 1)
    monkeypatch.setattr(budget, "LEAST_SECONDS", 0.0)
    history = [
        {"train/loss": 2.0 / n, "validation/loss": 2.1 / n, "validation/accuracy": 1 - 0.9 / n} for n in (1, 2, 3)
    ]
    running = live.LivePage(tmp_path, "av-digits", "image", "seed 0", print)
    running.budget.next = 0.0
    running.told("distill", 30, 100, 10, history)
    with server(tmp_path, 0) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"http://127.0.0.1:{http.server_port}/")
        page.get_by_text("Running: distill, epoch 4 of 10").wait_for(timeout=10_000)
        assert page.locator("svg").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shutil.copy(pages["run"], tmp_path / "report.html")
        page.get_by_role("heading", name="Networks", exact=True).wait_for(timeout=10_000)
        loaded = page.evaluate("performance.timeOrigin")
        page.wait_for_timeout(2500)
        assert page.evaluate("performance.timeOrigin") == loaded
        assert said == []
        context.close()
        http.shutdown()


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
