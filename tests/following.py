"""A page of the documentation followed as a reader does: its files written, its commands run, in its order."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from .conftest import Command

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```(bash|python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block of docs/PAGE that does something."""
    for match in _BLOCK.finditer((ROOT / "docs" / page).read_text()):
        yield match[1], match[2]


def follow(page: str, folder: Path, command: Command, patch: pytest.MonkeyPatch,
           capsys: pytest.CaptureFixture[str]) -> dict[str, str]:  # fmt: skip
    """Do what a page says, in a folder that knows the project's `scripts` and `docs`.

    Programs (blocks whose first line is `# NAME.py`) are written; of a recipe (`# NAME.yaml`) sections of the same name
    are replaced, or the file is written where there is none. Each line of `bash` has to end well.

    Returns:
        Each command line, in order, with what it printed.
    """
    patch.chdir(folder)
    for name in ("scripts", "docs"):
        (folder / name).symlink_to(ROOT / name)
    said: dict[str, str] = {}
    for language, text in blocks(page):
        if language == "bash":
            for line in filter(None, text.splitlines()):
                said[line] = _run(shlex.split(line, comments=True), command, patch, capsys)
            continue
        named = re.match(r"# (\S+\.(?:py|yaml))\n", text)
        if named and language == "python":
            (folder / named[1]).write_text(text)
        elif named:
            _edit(folder / named[1], text)
    return said


def _run(words: list[str], command: Command, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    if words[0] == "mstdistill":
        code, shown, err = command(*words[1:])
        assert code == 0, (words, err)
        return shown
    if words[0] == "cp":
        source, target = map(Path, words[1:])
        target.write_bytes(source.read_bytes())
        return ""
    assert words[0] == "python", words
    patch.setattr(sys, "argv", words[1:])
    capsys.readouterr()
    runpy.run_path(words[1], run_name="__main__")
    return capsys.readouterr().out


def _edit(recipe: Path, text: str) -> None:
    """Replace a recipe's sections as an editor would."""
    content = yaml.safe_load(recipe.read_text()) if recipe.exists() else {}
    recipe.write_text(yaml.safe_dump({**content, **yaml.safe_load(text)}))
