"""What an export's checks found, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ..markup import markdown_table, plain

_NOTHING = "-"


def export_table(figures: Mapping[str, Any]) -> Table:
    """What fits a terminal: one line an artefact."""
    last = figures["artefacts"][0]["splits"][-1]["split"]
    table = Table(title=f"exported, each run by its own runtime on {last}", title_justify="left",
                  caption=_caption(figures), caption_justify="left")  # fmt: skip
    for number, name in enumerate(["artefact", "size", "logits", "equal", "right", "batch 1", "batch 32"]):
        table.add_column(name, justify="right" if number else "left", no_wrap=number < 5)
    form = ""
    for one in figures["artefacts"]:
        split = one["splits"][-1]
        # under its format's name, so that eighty columns hold the line
        under = one["format"] == form
        name = f"  {one['quantise']}" if under else one["format"]
        if not under and one["quantise"] != "none":
            table.add_row(name)
            name = f"  {one['quantise']}"
        form = one["format"]
        table.add_row(
            name + ("" if one["within"] else " !"), _size(one["bytes"]), _off(split), _share(split["equal"], 1),
            _share(split["accuracy"], 1), *(_ratio(one, size) for size in ("1", "32")),
        )  # fmt: skip
    return table


def export_markdown(figures: Mapping[str, Any]) -> str:
    """Every figure."""
    names = [one["split"] for one in figures["artefacts"][0]["splits"]]
    judged = [f"{name}: {what}" for name in names for what in ("logits off", "equal", "accuracy")]
    timed = ["batch 1", "beside eager", "batch 32", "beside eager"]
    header = ["artefact", "file", "size", "of float32", *judged, *timed, "within"]
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
        splits += [_off(split), _share(split["equal"]), _share(split["accuracy"])]
    times: list[str] = []
    for size in ("1", "32"):
        times += [_seconds(one["seconds"][size]), _ratio(one, size)]
    return [one["title"], one["file"], _size(one["bytes"]), f"{one['of_float32']:.1%}", *splits, *times,
            "yes" if one["within"] else "no"]  # fmt: skip


def _caption(figures: Mapping[str, Any]) -> str:
    splits: Sequence[Mapping[str, Any]] = figures["artefacts"][0]["splits"]
    on = ", ".join(f"{split['split']} ({split['of_rows']:,} rows)" for split in splits)
    slow = [f"{one['title']} on {split['rows']:,} of {split['split']}" for one in figures["artefacts"]
            for split in one["splits"] if split["rows"] < split["of_rows"]]  # fmt: skip
    fewer = f" Too slow here for all of them: {', '.join(slow)}." if slow else ""
    student = ", ".join(
        f"{s['split']} {s['student_accuracy']:.2%}" for s in splits if s["student_accuracy"] is not None
    )
    eager = figures["student"]["seconds"]
    took = ", ".join(f"batch {size} {_seconds(eager[size])}" for size in ("1", "32"))
    return (
        f"On {on}.{fewer} Logits: the largest difference from the student's, as a part of its largest one; equal: the "
        f"same prediction. Student: {'accuracy ' + student + '; ' if student else ''}eager PyTorch takes {took} on "
        f"{figures['machine']['threads']} thread(s), an artefact is so many times as fast."
        + (" The rows are random: no accuracy, and the logits alone are judged." if figures["random"] else "")
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _off(split: Mapping[str, Any]) -> str:
    off = split["relative_difference"]
    return "no number" if off is None else f"{off:.0e}" if off else "0"


def _share(value: float | None, places: int = 2) -> str:
    return _NOTHING if value is None else f"{100 * value:.{places}f} %"


def _seconds(value: float | None) -> str:
    if value is None:
        return _NOTHING
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} us"


def _ratio(one: Mapping[str, Any], size: str) -> str:
    ratio = one["times_as_fast"][size]
    return _NOTHING if ratio is None else f"{ratio:.2f}x"
