"""A plan's figures for people: tables, the choice, the command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

_MEMORY = ("weights", "other networks", "gradients", "optimiser", "activations", "batch", "workspace", "exchange",
           "data", "cache", "runtime", "best epoch", "total")  # fmt: skip


def bytes_text(value: float) -> str:
    """For example 1.25 GB; decimal units, as data sheets have them."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}" if value / size < 1000 else f"{value / size:.0f} {unit}"
    return f"{value:.0f} B" if value else "-"


def seconds_text(value: float) -> str:
    """For example 12.3 ms."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns" if value else "-"


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
    yield _memory_table(figures["shown"], engine)
    yield _time_table(figures, engine)
    tables = [(name, table) for name, stage in figures["measured"]["stages"].items() for table in stage["tables"]]
    if tables:
        yield _cache_table(tables, engine)
    yield _engine_table(figures)
    yield from _verdict(figures)


def _memory_table(name: str, engine: Mapping[str, Any]) -> Table:
    table = Table(title=f"memory of a process under {name}, at the fullest moment of a step", title_justify="left")
    table.add_column("")
    for stage in engine["stages"]:
        table.add_column(stage, justify="right")
    for term in _MEMORY:
        values = [stage["memory"].get(term, 0.0) for stage in engine["stages"].values()]
        if any(values):
            table.add_row(term, *(bytes_text(value) for value in values), style="bold" if term == "total" else None)
    return table


def _time_table(figures: Mapping[str, Any], engine: Mapping[str, Any]) -> Table:
    table = Table(title="a step, and the run", title_justify="left")
    for heading in ("stage", "batch", "all processes", "FLOPs", "operators", "computes", "optimiser", "data",
                    "exchange", "step", "steps", "epochs", "stage takes", "sent a step"):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, stage in engine["stages"].items():
        measured, step = figures["measured"]["stages"][name], stage["step"]
        batch = f"{stage['batch']}" + (f" x {stage['accumulate']}" if stage["accumulate"] > 1 else "")
        table.add_row(
            name, batch, f"{figures['global_batch'][name]:,}", flops_text(measured["flops"]["at"]),
            f"{measured['operators']:,}", *(seconds_text(step[k]) for k in ("compute", "optimiser", "feed", "exchange",
                                                                           "total")),
            f"{stage['steps_per_epoch']:,}", f"{stage['epochs']:,}", seconds_text(stage["seconds"]),
            bytes_text(stage["exchange"]["bytes"]),
        )  # fmt: skip
    return table


def _cache_table(tables: list[tuple[str, Any]], engine: Mapping[str, Any]) -> Table:
    table = Table("stage", "table", "shape", "type", "size", "held", "built in", title="tables of constant logits",
                  title_justify="left")  # fmt: skip
    for stage, one in tables:
        seconds = engine["stages"][stage]["table_seconds"][one["name"]]
        table.add_row(stage, one["name"], "x".join(f"{n}" for n in one["shape"]), one["dtype"],
                      bytes_text(one["bytes"]), "device" if one["resident"] else "disk",
                      seconds_text(seconds))  # fmt: skip
    return table


def _engine_table(figures: Mapping[str, Any]) -> Table:
    chosen = (figures["chosen"] or {}).get("name")
    table = Table("launch", "memory", "in", "whole run", "", title="ways to launch, with the whole batch",
                  title_justify="left")  # fmt: skip
    for name, one in figures["engines"].items():
        why = one["reason"] if name != chosen else "chosen" if one["fits"] else "chosen, with a smaller batch"
        table.add_row(name, bytes_text(one["largest"]), one["fullest"], seconds_text(one["seconds"]), why)
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
