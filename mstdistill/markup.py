"""Words that people chose (classes, modalities, methods, paths) in Markdown and LaTeX, shown as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--"}
_LATEX |= {mark: f"\\{mark}" for mark in "&%_#${}"}


def plain(text: str) -> str:
    """A text on one line of Markdown; what would be markup in it is escaped."""
    text = " ".join(str(text).split())
    # an underscore within a word is none
    return re.sub(r"[\\`*\[\]<>|]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[Sequence[bool]] = ()) -> str:
    """A table of plain texts: the first column to the left, the others to the right."""
    lines = [[plain(name) for name in header], ["---"] + ["--:"] * (len(header) - 1)]
    for number, row in enumerate(rows):
        cells = [plain(cell) for cell in row]
        marks = bold[number] if bold else [False] * len(cells)
        lines.append([f"**{cell}**" if mark else cell for cell, mark in zip(cells, marks, strict=True)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex(text: str) -> str:
    """A text of LaTeX; what would be a command in it is escaped."""
    return "".join(_LATEX.get(letter, letter) for letter in text)
