"""The page that a run leaves: there while it runs and afterwards, cheap, never in the run's way; served to watch it."""

from __future__ import annotations

import json
import math
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstdistill.report import budget, charts, live, run_page
from mstdistill.report.budget import SHARE, Budget
from mstdistill.report.svg import WIDTH, label, text_width, ticks
from mstdistill.report.watch import server

from . import toy
from .conftest import Command, refused
from .test_report import self_contained

PAGED = {"page": True}
RELOADS = 'http-equiv="refresh"'


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is due after every step, and nothing is too dear."""
    monkeypatch.setattr(budget, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(budget, "SHARE", 1e6)


def test_a_run_leaves_its_tables_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    summary = toy.run(folder, run=PAGED).summary
    page = self_contained(folder / "report.html")
    assert RELOADS not in (folder / "report.html").read_text()
    for entry in summary["networks"]:
        assert entry["name"] in page.words
        for split in ("validation", "test"):
            assert f"{entry[split]['accuracy']:.4f}" in page.words
            assert f"{entry[split]['loss']:.4f}" in page.words
    by_name = {entry["name"]: entry["test"]["accuracy"] for entry in summary["networks"]}
    points = 100 * (by_name["distilled student"] - by_name["student alone"])
    assert re.search(rf"{re.escape(f'{points:+.1f}')} percentage points \(95\s% interval", page.words)
    confusion = json.loads((folder / "report.json").read_text())["confusion"]
    assert confusion.keys() == by_name.keys()
    for name, matrix in confusion.items():
        right = sum(row[i] for i, row in enumerate(matrix))
        assert right / sum(map(sum, matrix)) == pytest.approx(by_name[name])


@pytest.mark.usefixtures("always")
def test_numbers_are_those_without_a_page(tmp_path: Path) -> None:
    kept = []
    for name, page in (("with", True), ("without", False)):
        summary = toy.run(tmp_path / name, dropout=0.2, run={"page": page}).summary
        kept.append((summary["networks"], (tmp_path / name / "student" / "model.safetensors").read_bytes()))
    assert kept[0] == kept[1]
    found = json.loads((tmp_path / "with" / "report.json").read_text())
    assert found["left_out"] == []
    assert {"routing", "masks", "agreement", "attention"} <= found.keys()
    assert not (tmp_path / "without" / "report.html").exists()


@pytest.mark.usefixtures("always")
def test_the_page_of_a_run_where_some_lack_a_modality(tmp_path: Path) -> None:
    """What stands where nothing is changes no figure."""
    kept = []
    for fill in (0.0, 3.0):
        given = {"train": toy.gappy(fill=fill), "validation": toy.gappy(30, 2, fill), "test": toy.gappy(30, 3, fill)}
        toy.run(tmp_path / str(fill), run=PAGED, **given)
        found = json.loads((tmp_path / str(fill) / "report.json").read_text())
        kept.append([found[key] for key in ("gain", "confusion", "routing", "agreement", "masks")])
        assert found["left_out"] == []
    assert kept[0] == kept[1]
    counts = {name: sum(map(sum, matrix)) for name, matrix in kept[0][1].items()}
    assert counts["teacher other"] < counts["distilled student"]


@pytest.mark.usefixtures("always")
def test_a_page_while_it_runs(tmp_path: Path) -> None:
    page, seen = tmp_path / "run" / "report.html", dict[str, str]()

    def look(stage: str, step: int, losses: Mapping[str, Any]) -> None:
        seen.setdefault(stage, page.read_text())

    toy.run(tmp_path / "run", run=PAGED, observe=look)
    assert {"cotrain", "distill", "alone"} <= seen.keys()
    assert all(RELOADS in text and f"Running: {stage}, epoch" in text for stage, text in seen.items())
    assert "validation accuracy" in seen["distill"]
    assert RELOADS not in page.read_text()


@pytest.mark.usefixtures("always")
def test_the_page_of_a_run_that_ends_early(tmp_path: Path) -> None:
    def stop(stage: str, step: int, losses: Mapping[str, Any]) -> None:
        if stage == "distill":
            raise ValueError("the network is odd")

    with pytest.raises(ValueError, match="odd"):
        toy.run(tmp_path / "run", run=PAGED, observe=stop)
    text = (tmp_path / "run" / "report.html").read_text()
    assert RELOADS not in text
    assert "Ended: the network is odd" in text


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("where", [live, run_page])
def test_a_page_that_cannot_be_drawn_ends_no_run(
    where: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(where, "write_text" if where is live else "write_run_page", fail)
    toy.run(tmp_path / "run", run=PAGED, quiet=False)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("warning: the run's page can't be") == 1
    assert "no space left on device" in said
    assert (tmp_path / "run" / "student" / "model.safetensors").exists()
    if where is run_page:
        assert RELOADS not in (tmp_path / "run" / "report.html").read_text()


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 100.0), st.floats(0.001, 2.0)), min_size=1, max_size=30))
def test_pages_take_their_share(times: list[tuple[float, float]]) -> None:
    """Whatever they cost, but for the first one's."""
    now = [0.0]
    kept = Budget(clock=lambda: now[0])
    dearest = 0.0
    for passing, cost in times:
        now[0] += passing
        if kept.due():
            assert kept.spent <= SHARE * now[0] + 1e-9
            with kept.spending():
                now[0] += cost
            dearest = max(dearest, cost)
        assert not kept.affords(SHARE * now[0] - kept.spent + 1e-6)
        if SHARE * now[0] > kept.spent + 1e-6:
            assert kept.affords(SHARE * now[0] - kept.spent - 1e-6)
    assert kept.spent <= SHARE * now[0] + dearest + 1e-9


@settings(deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(1e-4, 1e6), st.booleans())
def test_ticks(low: float, width: float, whole: bool) -> None:
    found = ticks(low, low + width, whole=whole)
    near = 1e-6 * width + 1e-8
    assert all(low - near <= tick <= low + width + near for tick in found)
    assert len(found) <= 6
    assert len(found) >= (2 if not whole else 0)
    assert not whole or all(tick == round(tick) for tick in found)
    assert all(len(label(tick)) <= 14 for tick in found)


ODD = [math.nan, 0.0, 0.0, 1e-12, 1.0]


@pytest.mark.parametrize("svg", [
    charts.lines("t", {"a": ODD, "b": [2.0], "c": [math.inf]}, "epoch", "loss"),
    charts.lines("t", {"a": [0.0] * 1000}, "epoch", "loss"),
    charts.along("t", {"a": [(1.0, 0.5, 0.0), (100.0, 0.7, 0.1)], "b": [(1.0, 0.5, 0.2)]}, "labels", "accuracy"),
    charts.along("t", {"a": [(0.0, 0.5, 0.1)], "b": [(0.5, 0.5, 0.1)]}, "share", "accuracy", first=["a"]),
    charts.bars("t", {"猫" * 40: 0.0, "b": 0.0}, "share"),
    charts.bars("t", {"a": -1.0, "b": 3.0}, "share"),
    charts.intervals("t", {"a": 0.5}, {"a": 0.0}, "accuracy"),
    charts.intervals("t", {"a": 0.5, "b": 0.6, "c": 0.7}, {"a": 0.01, "b": 9.0, "c": (0.0, 0.1)}, "accuracy"),
    charts.histogram("t", [0, 0], 0.0, 1.0, "entropy"),
    charts.stacked("t", {"a": [0.5, 0.7]}, ["p", "q"], "share"),
    charts.heat("t", [[1.0, 0.0], [-0.1, 1.1]], ["a long name of a class " * 5, "b"], "predicted", "true"),
    charts.heat("t", [[1 / 40] * 40] * 40, [str(i) for i in range(40)], "predicted", "true"),
])  # fmt: skip
def test_charts_stay_in_their_picture(svg: str) -> None:
    height = float(re.search(rf'viewBox="0 0 {WIDTH} ([\d.]+)"', svg).group(1))  # type: ignore[union-attr]
    across = re.findall(r' (?:x|cx)="([^"]*)"', svg) + re.findall(r"[ML](\S+) ", svg)
    down = re.findall(r' (?:y|cy)="([^"]*)"', svg) + re.findall(r"[ML]\S+ ([\d.nainf-]+)", svg)
    for pair in " ".join(re.findall(r'points="([^"]*)"', svg)).split():
        across.append(pair.split(",")[0])
        down.append(pair.split(",")[1])
    assert across
    assert all(0 <= float(x) <= WIDTH for x in across)
    assert all(0 <= float(y) <= height for y in down)
    ending = r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">(?:<title>.*?</title>)?(.*?)<'
    assert all(text_width(text) <= float(x) for x, text in re.findall(ending, svg))


@pytest.fixture
def served(tmp_path: Path) -> Any:
    (tmp_path / "config.yaml").write_text("task: av-digits\n")
    http = server(tmp_path, 0)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def test_watching(tmp_path: Path, served: Any) -> None:
    assert served.server_address[0] == "127.0.0.1"
    root = f"http://127.0.0.1:{served.server_port}"

    def get(path: str) -> str:
        with urllib.request.urlopen(root + path, timeout=10) as answer:
            assert answer.headers["Cache-Control"] == "no-store"
            return str(answer.read().decode())

    assert RELOADS in get("/")
    (tmp_path / "report.html").write_text("the page, é")
    assert get("/") == get("/report.html") == "the page, é"
    for path in ("/config.yaml", "/../config.yaml", "//etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(path)


def test_what_cannot_be_watched(tmp_path: Path, command: Command) -> None:
    refused(command("watch", tmp_path), "holds neither a run nor a suite")
    refused(command("watch", tmp_path / "nowhere"), "nowhere holds neither a run nor a suite")
    (tmp_path / "config.yaml").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(command("watch", tmp_path, "--port", port), f"--port {port}: in use", "0 for any that is free")
