"""The page on few labels and missing sounds, followed; its recipe runs on data with empty cells."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from .conftest import Command
from .following import blocks, follow


def test_the_page_trains_on_pairs_without_labels_and_sounds(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MSTDISTILL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    models = next(text for language, text in blocks("tutorial.md") if text.startswith("# models.py"))
    exec(compile(models, "models.py", "exec"), {})
    said = follow("few-labels.md", tmp_path, command, monkeypatch, capsys)
    with (tmp_path / "things/labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    labelled = sum(bool(row["kind"]) for row in rows)
    assert labelled < len(rows) / 2 < len(rows) - 1 > sum(bool(row["sound"]) for row in rows)

    checked = next(out for line, out in said.items() if " check " in line)
    assert f"{len(rows) - labelled}" in checked
    for name in ("mine", "mine-augmented"):
        summary = json.loads((tmp_path / "runs" / name / "summary.json").read_text())
        present = summary["present"]
        # all that isn't held out trains: the labelled rows are cut by the protocol, the others stay
        held_out = 2 * (labelled // 5)
        assert abs(present["instances"] - (len(rows) - held_out)) <= 2
        heard = present["have"]["audio"] / present["instances"]
        assert heard == pytest.approx(sum(bool(row["sound"]) for row in rows) / len(rows), abs=0.05)
        assert {one["name"] for one in summary["networks"]} == {"student alone", "teacher hears", "distilled student"}
        assert (tmp_path / "runs" / name / "round-3").is_dir()
    first, second = ((tmp_path / "runs" / name / "student/model.safetensors").read_bytes()
                     for name in ("mine", "mine-augmented"))  # fmt: skip
    assert first != second
