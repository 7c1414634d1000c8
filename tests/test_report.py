"""Pages of runs and suites: self-contained, every figure's numbers below it and in a file."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mstdistill.report import budget
from mstdistill.report.page import Page
from mstdistill.suite.page import SuitePage, write_suite_page
from mstdistill.suite.plan import load_suite, plan
from mstdistill.suite.tables import judge

from .conftest import Command, refused
from .test_suite import record, write_suite

FAST = ["cotrain.epochs=2", "specialise.epochs=2", "distill.epochs=3", "alone.epochs=2", "run.trackers=[]",
        "data.limit=400"]  # fmt: skip


class Looked(HTMLParser):
    """What a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.outside: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "data:")):
                self.outside.append(value)

    def handle_data(self, data: str) -> None:
        self.words += data


def self_contained(path: Path) -> Looked:
    text = path.read_text()
    page = Looked(text)
    assert "script" not in page.tags
    assert page.outside == []
    assert "@import" not in text
    assert "url(http" not in text
    assert len(page.ids) == len(set(page.ids))  # of several pictures in one page
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    assert used <= set(page.ids)
    return page


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mst", "kd"])
def test_the_page_of_a_run(method: str, tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    assert command("train", "av-digits", f"method={method}", "--out", run, *FAST)[0] == 0
    code, shown, _ = command("report", run)
    assert code == 0
    assert "report.html" in shown
    page = self_contained(run / "report.html")
    found = json.loads((run / "report.json").read_text())
    wanted = {"Networks", "Learning", "Confusions", "Settings", "resolved recipe"}
    assert all(
        title in page.words for title in wanted | ({"Routing", "Masks", "Agreement"} if method == "mst" else set())
    )
    galleries = (run / "report.html").read_text().count('<figure class="pictures">')
    assert galleries == 2
    assert page.tags.count("figure") == page.tags.count("svg") + galleries == page.tags.count("figcaption")
    test = {entry["name"]: entry["test"]["accuracy"] for entry in found["summary"]["networks"]}
    for name, matrix in found["confusion"].items():
        total = sum(map(sum, matrix))
        assert total == 80  # a fifth of 400
        assert sum(matrix[i][i] for i in range(10)) / total == pytest.approx(test[name])
        assert f"{test[name]:.4f}" in page.words
    if method == "mst":
        assert sum(found["routing"]["mean"]) == pytest.approx(1.0)
        assert sum(found["routing"]["entropy"]) == found["routing"]["instances"] == 80
        between = found["agreement"]["between"]
        assert all(between[i][i] == 1.0 for i in range(4))
        assert all(0 < values["mean"] < 1 for values in found["masks"].values())
        assert f"{found['routing']['mean'][0]:.4f}" in page.words


def test_the_page_of_a_suite(tmp_path: Path) -> None:
    grid = plan(load_suite(str(write_suite(tmp_path))))
    made = {cell: record(0.5 + 0.01 * number) for number, cell in enumerate(grid.cells[:-1])}
    path = write_suite_page(judge(grid, made), tmp_path)
    page = self_contained(path)
    assert "MST, top-1, seed 1: not run yet" in page.words
    assert "0.5200" in page.words  # KD's mean over its two seeds
    assert page.tags.count("svg") == 1


def test_the_page_of_a_suite_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reloads itself until the suite ends, however it does; where it can't be drawn, the suite goes on."""
    monkeypatch.setattr(budget, "LEAST_SECONDS", 0.0)
    grid = plan(load_suite(str(write_suite(tmp_path))))
    said: list[str] = []
    page = SuitePage(grid, tmp_path, True, said.append)
    page.budget.next = 0.0
    page.renew()
    assert 'http-equiv="refresh"' in (tmp_path / "report.html").read_text()
    with pytest.raises(KeyboardInterrupt), page.ending():
        raise KeyboardInterrupt
    assert 'http-equiv="refresh"' not in (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()
    assert page.finish() is None
    assert len(said) == 1
    assert "its tables are whole" in said[0]


def test_words_are_not_markup() -> None:
    page = Page("<b>", "a & b")
    page.say("<script>alert(1)</script>")
    page.table(["<i>"], [["x < y", 0.5]])
    text = page.render()
    assert "<script>" not in text
    assert "<i>" not in text
    assert "x &lt; y" in text


def test_no_run_no_page(tmp_path: Path, command: Command) -> None:
    refused(command("report", tmp_path), "holds no finished run")
