"""Tables of a run, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table

from .data.view import modality_of
from .markup import markdown_table, plain

if TYPE_CHECKING:
    from .experiment import Experiment

COLUMNS = (("accuracy", "accuracy"), ("average_accuracy", "average acc."), ("weighted_f1", "F1"),
           ("kappa", "kappa"), ("loss", "loss"))  # fmt: skip
# of tasks of several classes at once
SEVERAL = (("map_macro", "mAP"), ("map_weighted", "weighted mAP"), ("f1_micro", "micro F1"), ("f1_macro", "macro F1"),
           ("auroc", "AUROC"), ("loss", "loss"))  # fmt: skip
SHOWN = ("accuracy", "map_macro", "loss")  # what fits a terminal; the files hold all


def columns_of(summary: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The figures of a run's networks and their titles, the one by which they are chosen first."""
    last = summary["networks"][-1]
    return SEVERAL if any("map_macro" in last.get(split, {}) for split in ("validation", "test")) else COLUMNS


def plan_table(experiment: Experiment) -> Table:
    """What a run is about to do: data, networks, taps with shapes and mask costs."""
    recipe = experiment.recipe
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in experiment.splits.items())
    mixture = recipe.method == "mst"
    rounds = f"rounds {recipe.rounds.count} x {recipe.each_round.epochs}, " if recipe.rounds.count else ""
    folds = f"folds {recipe.routing.folds} x {recipe.cotrain.epochs}, " if recipe.routing.folds else ""
    epochs = (
        f"epochs: co-train {recipe.cotrain.epochs}, {rounds}{folds}specialise {recipe.specialise.epochs}, distil "
        f"{recipe.distill.epochs}; rule {recipe.routing.rule}, k={recipe.routing.k}"
        if mixture else f"method {recipe.method}, epochs: {recipe.distill.epochs}"
    )  # fmt: skip
    table = Table(
        title=f"{experiment.task.name}: student sees {modality_of(experiment.target)}   ({sizes})",
        caption=f"{epochs}; seed {recipe.seed}; {experiment.accelerator.num_processes} process(es) on "
        f"{experiment.accelerator.device.type}",
        title_justify="left", caption_justify="left",
    )  # fmt: skip
    if not mixture:
        for name in ("network", "sees"):
            table.add_column(name)
        table.add_row("student", modality_of(experiment.target))
        for teacher in experiment.teachers:
            table.add_row(f"teacher {teacher.name}", " + ".join(map(modality_of, teacher.modalities)))
        return table
    for name in ("network", "sees", "tap", "feature", "mask", "mask parameters"):
        table.add_column(name, justify="right" if name == "mask parameters" else "left")
    table.add_row("student", modality_of(experiment.target), "", "", "", "")
    for teacher, plans in zip(experiment.teachers, experiment.mask_plans, strict=True):
        label, sees = f"teacher {teacher.name}", " + ".join(map(modality_of, teacher.modalities))
        if not plans:
            table.add_row(label, sees, "none", "", "unmasked", "0")
        for plan in plans:
            shape = "x".join(map(str, plan.shape))
            tap = plan.tap if plan.calls == 1 else f"{plan.tap} (masked at each of {plan.calls} calls)"
            table.add_row(label, sees, tap, shape, f"{plan.kind}, h={plan.hidden}", f"{plan.parameters:,}")
            label, sees = "", ""
    return table


def summary_tables(summary: Mapping[str, Any]) -> tuple[str, list[Table]]:
    """The final tables, as Markdown and for the terminal."""
    splits = [name for name in ("validation", "test") if name in summary["networks"][-1]]
    columns = columns_of(summary)
    header = ["network"] + [f"{split} {title}" for split in splits for _, title in columns]
    rows = []
    for entry in summary["networks"]:
        rows.append([entry["name"]] + [_figure(entry, split, key) for split in splits for key, _ in columns])
    shares = [[name, f"{100 * share:.1f} %"] for name, share in summary["routing_share"].items()]
    title = f"{summary['task']}, student sees {summary['target']}, seed {summary['seed']}"
    parts = [f"# {plain(title)}", markdown_table(header, rows)]
    short = [f"val. {name}" if split != "test" else f"test {name}"
             for split in splits for key, name in columns if key in SHOWN]  # fmt: skip
    few = [
        [entry["name"]] + [_figure(entry, split, key) for split in splits for key, _ in columns if key in SHOWN]
        for entry in summary["networks"]
    ]
    shown = [_terminal(title, ["network", *short], few)]
    if shares:
        parts += ["## Routing: each specialised teacher's part in the last epoch",
                  markdown_table(["specialised teacher", "share"], shares)]  # fmt: skip
        shown.append(_terminal("routing, last epoch", ["specialised teacher", "share"], shares))
    return "\n\n".join(parts) + "\n", shown


def _figure(entry: Mapping[str, Any], split: str, key: str) -> str:
    """Of a network on a split; a dash where it sees none of its instances."""
    return f"{entry[split][key]:.3f}" if split in entry else "–"


def _terminal(title: str, header: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", no_wrap=number == 0)
    for row in rows:
        table.add_row(*row, style="bold" if row[0].startswith("distilled") else None)
    return table
