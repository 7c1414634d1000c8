"""The README's example runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mstdistill.config import load
from mstdistill.data.sources.registry import find_task

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = next(code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "distill(" in code)
    scope: dict[str, object] = {"__name__": "example"}
    exec(compile(example, "README.md", "exec"), scope)
    result = scope["result"]
    assert result.folder == Path("runs/sensors")  # type: ignore[attr-defined]
    assert result.summary["networks"][-1]["test"]["accuracy"] > 0.4  # type: ignore[attr-defined]


def test_the_kernel_example_runs() -> None:
    example = next(code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "routed_kd_loss(" in code)
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert scope["student_logits"].grad is not None  # type: ignore[attr-defined]


def test_commands_name_valid_settings() -> None:
    commands = re.findall(r"^mstdistill train (\S+)(.*?)(?:#.*)?$", README, re.MULTILINE)
    assert len(commands) >= 4
    for recipe, rest in commands:
        load(recipe, [word for word in rest.split() if "=" in word])


def test_pictures_and_pages_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (Path(__file__).parents[1] / target).exists(), target


def test_prepare_commands_name_tasks_and_their_options() -> None:
    pages = README + (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    commands = re.findall(r"mstdistill prepare (\S+)((?: \[?--[a-z-]+[ =]\S+)*)", pages)
    assert {task for task, _ in commands} >= {"av-mnist", "ravdess", "vggsound-50k", "crisismmd-v2", "nyu-depth-v2"}
    for task, rest in commands:
        for option in re.findall(r"--([a-z-]+)", rest):
            assert option == "out" or option.replace("-", "_") in find_task(task).options, (task, option)
