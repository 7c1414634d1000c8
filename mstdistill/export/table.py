"""What an export's checks found, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ..markup import markdown_table, plain

_NOTHING = "-"


def export_table(figures: Mapping[str, Any]) -> Table:
    """What fits a terminal: one line an artefact."""
    table = Table(title="exported, each run by its own runtime", title_justify="left", caption=_caption(figures),
                  caption_justify="left")  # fmt: skip
    for number, name in enumerate(["artefact", "size", "logits", "equal", "accuracy", "batch 1", "batch 32", ""]):
        table.add_column(name, justify="right" if number else "left", no_wrap=number == 0)
    for one in figures["artefacts"]:
        last = one["splits"][-1]
        table.add_row(
            one["title"], _size(one["bytes"]), f"{last['relative_difference']:.1e}", _share(last["equal"]),
            _share(last["accuracy"]), *(_ratio(one, size) for size in ("1", "32")), "" if one["within"] else "beyond",
        )  # fmt: skip
    return table


def export_markdown(figures: Mapping[str, Any]) -> str:
    """Every figure."""
    names = [one["split"] for one in figures["artefacts"][0]["splits"]]
    header = ["artefact", "file", "size", "of float32", *(f"{name}: {what}" for name in names for what in (
        "logits off", "equal", "accuracy")), "batch 1", "beside eager", "batch 32", "beside eager", "within"]  # fmt: skip
    rows = [_row(one) for one in figures["artefacts"]]
    text = markdown_table(header, rows)
    notes = [_caption(figures), *(f"{one['title']}: {line}" for one in figures["artefacts"] for line in one["beyond"])]
    tolerances = "; ".join(
        f"{name}: logits {t['logits']:g}, equal {t['equal']:.1%}, accuracy {100 * t['accuracy']:g} points"
        for name, t in figures["tolerances"].items()
    )
    return f"{text}\n\n" + "\n\n".join(map(plain, notes)) + f"\n\nTolerances: {plain(tolerances)}.\n"


def _row(one: Mapping[str, Any]) -> list[str]:
    splits: list[str] = []
    for split in one["splits"]:
        splits += [f"{split['relative_difference']:.1e}", _share(split["equal"]), _share(split["accuracy"])]
    times: list[str] = []
    for size in ("1", "32"):
        times += [_seconds(one["seconds"][size]), _ratio(one, size)]
    return [one["title"], one["file"], _size(one["bytes"]), f"{one['of_float32']:.1%}", *splits, *times,
            "yes" if one["within"] else "no"]  # fmt: skip


def _caption(figures: Mapping[str, Any]) -> str:
    splits: Sequence[Mapping[str, Any]] = figures["artefacts"][0]["splits"]
    on = ", ".join(f"{split['split']} ({split['rows']:,} rows)" for split in splits)
    student = ", ".join(f"{s['split']} {s['student_accuracy']:.2%}" for s in splits if s["student_accuracy"] is not None)
    eager = figures["student"]["seconds"]
    took = ", ".join(f"batch {size} {_seconds(eager[size])}" for size in ("1", "32"))
    return (
        f"On {on}. Logits: the largest difference from the student's, as a part of its largest one; equal: the same "
        f"prediction. Student: {'accuracy ' + student + '; ' if student else ''}eager PyTorch takes {took} on "
        f"{figures['machine']['threads']} thread(s); ratios say how many times as fast an artefact is."
        + (" The rows are random: no accuracy, and the logits alone are judged." if figures["random"] else "")
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _share(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2%}"


def _seconds(value: float | None) -> str:
    if value is None:
        return _NOTHING
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def _ratio(one: Mapping[str, Any], size: str) -> str:
    ratio = one["times_as_fast"][size]
    return _NOTHING if ratio is None else f"{ratio:.2f}x"
