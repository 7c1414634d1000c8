"""Words that people chose are shown as they are: on the screen, in Markdown, LaTeX, pages and charts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from mstdistill import check
from mstdistill.markup import latex, markdown_table, plain

WORDS = ["[red]", "[/INST]", "a|b", "<b>x</b>", "$x^2$", ":smile:", "100 %_#&{}\\", "*so*", "`code`", "$", "~^"]


def test_markdown_cells_stay_cells() -> None:
    table = markdown_table(["class", "n"], [[word, "1"] for word in WORDS], [[False, True]] * len(WORDS))
    lines = table.splitlines()
    assert len(lines) == len(WORDS) + 2
    for line, word in zip(lines[2:], WORDS, strict=True):
        cells = re.split(r"(?<!\\)\|", line)
        assert len(cells) == 4
        assert re.sub(r"\\([\\`*\[\]<>|_])", r"\1", cells[1].strip()) == word
    assert plain("a_b c\n\nd") == "a_b c d"


def test_latex_has_no_commands_of_people() -> None:
    for word in WORDS:
        text = latex(word)
        left = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum)\{\}|\\[&%_#${}]", "", text)
        assert not set(left) & set("&%_#${}\\~^")


def test_a_terminal_shows_class_names(tmp_path: Path) -> None:
    from .doors import table

    rows = {"x": list(range(33)), "label": [WORDS[i % len(WORDS)] for i in range(33)]}
    shown = str(check(table(tmp_path / "d", {"train": rows})))
    assert all(word in shown for word in WORDS)


def test_charts_show_class_names() -> None:
    from mstdistill.report import charts

    svg = charts.heat('shares <of> "all"', np.eye(len(WORDS)).tolist(), WORDS, "true", "seen")
    for word in WORDS:
        assert word.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in svg
    assert 'aria-label="shares &lt;of&gt; &quot;all&quot;"' in svg
