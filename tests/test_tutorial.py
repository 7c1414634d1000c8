"""The tutorial's page, followed from two folders to an app."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mstdistill import Student

from .conftest import Command
from .following import follow


def test_the_tutorial_ends_with_an_app(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MSTDISTILL_HOME", str(tmp_path / "home"))
    said = follow("tutorial.md", tmp_path, command, monkeypatch, capsys)
    shown = {" ".join(line.split()[:2]): out for line, out in said.items()}
    assert "usable" in shown["mstdistill check"]
    assert "things.yaml" in shown["mstdistill new"]
    assert "report.html" in shown["mstdistill train"]
    summary = json.loads((tmp_path / "runs/things/summary.json").read_text())
    figures = {one["name"]: one for one in summary["networks"]}
    assert set(figures) == {"student alone", "teacher sound", "distilled student"}
    assert figures["teacher sound"]["test"]["accuracy"] > 0.6  # of three classes: it has learned
    page = (tmp_path / "runs/things/report.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert all(tap.removeprefix("sound.") in shown["mstdistill taps"] for tap in summary["routing_share"])

    # what the app says of the pictures is what the student itself says of them
    line = next(one for one in said if one.startswith("python app.py"))
    student = Student.from_pretrained(tmp_path / "runs/things/student")
    views = student.view([Image.open(path) for path in line.split()[2:]])
    names = student.config["class_names"]
    with torch.no_grad():
        assert json.loads(said[line]) == [names[i] for i in student.predict(views).tolist()]
