"""A plan's figures for people: tables, the choice, the command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

_MEMORY = ("weights", "other networks", "gradients", "optimiser", "activations", "batch", "workspace", "exchange",
           "data", "cache", "runtime", "best epoch", "checkpoint", "total")  # fmt: skip
# Columns of the narrowest terminal that tables are made for, and a figure that says nothing.
WIDTH, NOTHING = 80, "-"


def bytes_text(value: float) -> str:
    """For example 1.25 GB; decimal units, as data sheets have them."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}" if value / size < 1000 else f"{value / size:.0f} {unit}"
    return f"{value:.0f} B" if value else NOTHING


def seconds_text(value: float) -> str:
    """For example 12.3 ms."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns" if value else NOTHING


def flops_text(value: float) -> str:
    """For example 20.3 GFLOP."""
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} FLOP"


def shown(figures: Mapping[str, Any]) -> Iterator[Any]:
    """What to print, one after the other."""
    recipe, machine = figures["recipe"], figures["machine"]
    yield Text(f"{recipe['name']}: student sees {recipe['target']}, method {recipe['method']}, precision "
               f"{recipe['precision']}")  # fmt: skip
    yield Text(f"instances: {figures['instances']['train']:,} to train on, from {figures['instances']['from']}")
    yield Text(f"machine: {figures['gpus']} x {machine['title']}" + (f" on each of {figures['nodes']} nodes"
               if figures["nodes"] > 1 else "") + f", {bytes_text(machine['memory'])} each")  # fmt: skip
    engine = figures["chosen"] or figures["engines"][figures["shown"]]
    stages = engine["stages"]
    yield from _tables(
        f"memory of a process under {figures['shown']}, at the fullest moment of a step",
        {name: _memory(stage["memory"]) for name, stage in stages.items()},
    )
    yield from _tables("a step, and the run", {name: _time(name, stage, figures) for name, stage in stages.items()})
    yield from _tables("tables of constant logits", {
        one["name"]: _cache(name, one, stages[name]) for name, stage in figures["measured"]["stages"].items()
        for one in stage["tables"]
    })  # fmt: skip
    yield _engine_table(figures)
    yield from _verdict(figures)


def _tables(title: str, columns: Mapping[str, Mapping[str, str]]) -> Iterator[Table]:
    """Figures as rows, those without any left out; several tables under each other where one would be too wide."""
    rows = [row for row in next(iter(columns.values()), {}) if any(one[row] != NOTHING for one in columns.values())]
    parts: list[list[str]] = []
    room = 0
    for name in columns:
        width = 3 + max(map(len, (name, *(columns[name][row] for row in rows))))
        if width > room:
            parts.append([])
            room = WIDTH - 4 - max(map(len, rows))
        parts[-1].append(name)
        room -= width
    for number, names in enumerate(parts):
        table = Table("", title=None if number else title, title_justify="left")
        for name in names:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(row, *(columns[name][row] for name in names), style="bold" if row == "total" else None)
        yield table


def _memory(needs: Mapping[str, float]) -> dict[str, str]:
    return {term: bytes_text(needs.get(term, 0.0)) for term in _MEMORY}


def _time(name: str, stage: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, str]:
    measured, step = figures["measured"]["stages"][name], stage["step"]
    return {
        "batch": f"{stage['batch']}" + (f" x {stage['accumulate']}" if stage["accumulate"] > 1 else ""),
        "of all processes": f"{figures['global_batch'][name]:,}",
        "forward, backward": flops_text(measured["flops"]["at"]),
        "operators": f"{measured['operators']:,}",
        "computes": seconds_text(step["compute"]),
        "optimiser": seconds_text(step["optimiser"]),
        "data": seconds_text(step["feed"]),
        "exchange": seconds_text(step["exchange"]),
        "step": seconds_text(step["total"]),
        "sends in a step": bytes_text(stage["exchange"]["bytes"]),
        "steps of an epoch": f"{stage['steps_per_epoch']:,}",
        "epochs": f"{stage['epochs']:,}",
        "stage": seconds_text(stage["seconds"]),
    }


def _cache(name: str, one: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, str]:
    return {
        "of stage": name,
        "shape": "x".join(f"{n}" for n in one["shape"]),
        "type": one["dtype"],
        "size": bytes_text(one["bytes"]),
        "held": "device" if one["resident"] else "disk",
        "built in": seconds_text(stage["table_seconds"][one["name"]]),
    }


def _engine_table(figures: Mapping[str, Any]) -> Table:
    chosen = (figures["chosen"] or {}).get("name")
    table = Table(title="ways to launch, with the whole batch", title_justify="left")
    for heading in ("launch", "memory", "whole run"):
        table.add_column(heading, justify="left" if heading == "launch" else "right", no_wrap=True)
    table.add_column("")  # words, which may go over several lines
    for name, one in figures["engines"].items():
        why = one["reason"] if name != chosen else "chosen" if one["fits"] else "chosen, with a smaller batch"
        table.add_row(name, bytes_text(one["largest"]), seconds_text(one["seconds"]), why)
    return table


def _verdict(figures: Mapping[str, Any]) -> Iterator[Text]:
    chosen, machine = figures["chosen"], figures["machine"]
    if chosen is None:
        one = figures["engines"][figures["shown"]]
        yield Text(
            f"nothing fits, not even with a batch of one; {figures['shown']} needs {bytes_text(one['largest'])} with "
            f"the recipe's batch, {bytes_text(machine['usable'])} of {bytes_text(machine['memory'])} are counted on. "
            "Take a larger GPU, smaller masks (mask.max_parameters) or smaller networks"
        )
        return
    yield Text(f"{chosen['name']}: the simplest that stays within {bytes_text(machine['usable'])} of "
               f"{bytes_text(machine['memory'])}")  # fmt: skip
    if chosen["cut"] > 1:
        yield Text(f"the recipe's batch fits nowhere; it is cut into {chosen['cut']} parts that are accumulated (batch "
                   "norms then see the parts)")  # fmt: skip
    for command in figures["commands"]:
        yield Text(command, style="bold", no_wrap=True, overflow="ignore")
