"""The page of a run: figures, learning curves, routing, masks, agreement, confusions, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from ..tables import columns_of
from . import charts
from .attention import Gallery
from .figures import run_figures
from .page import Page

# Classes up to which tables of classes are drawn; beyond, the numbers are in report.json.
MOST_CLASSES = 40
_LIKENESS = ("before", "after", "kept")


def write_run_page(folder: Path) -> Path:
    """Measure a finished run and write report.html and report.json into its folder.

    Raises:
        DataError: no finished run there.
        ConfigError: matplotlib is not installed.
    """
    found, galleries = run_figures(folder)
    summary = found["summary"]
    page = Page(
        f"{summary['task']}: a student that sees {summary['target']}",
        f"method {summary['method']}, seed {summary['seed']}, {summary['seconds']:.0f} s; versions "
        + ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
    )
    _networks(page, summary)
    _curves(page, found["histories"])
    if "routing" in found:
        _routing(page, found)
        _masks(page, found)
        _agreement(page, found)
    _attention(page, found["attention"], galleries, found["split"])
    _confusions(page, found)
    page.heading("Settings")
    page.text("resolved recipe", found["config"])
    write_text(folder / "report.json", json.dumps(found, indent=1))
    write_text(folder / "report.html", page.render())
    return folder / "report.html"


def _networks(page: Page, summary: Mapping[str, Any]) -> None:
    page.heading("Networks")
    split = "test" if "test" in summary["networks"][-1] else "validation"
    columns = columns_of(summary)
    measure, title = columns[0]
    networks = [entry for entry in summary["networks"] if split in entry]  # others see none of its instances
    values = {entry["name"]: float(entry[split][measure]) for entry in networks}
    rows = [[e["name"], " + ".join(e["sees"]), *(float(e[split][key]) for key, _ in columns)]
            for e in networks]  # fmt: skip
    header = ["network", "sees", *(one for _, one in columns)]
    page.figure(f"{title[0].upper()}{title[1:]} on {split}", charts.bars(f"{title} on {split}", values, title), header,
                rows)  # fmt: skip
    page.table(header, rows)


def _curves(page: Page, histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    page.heading("Learning")
    with page.side_by_side():
        for stage, history in histories.items():
            for title, ending in (
                ("loss", "loss"),
                ("validation accuracy", "accuracy"),
                ("validation mAP", "map_macro"),
            ):
                series = _series(history, ending)
                if series and len(history) > 1:
                    rows = [[str(i), *values] for i, values in enumerate(zip(*series.values(), strict=True))]
                    name = f"{stage}: {title}"
                    page.figure(name, charts.lines(name, series, "epoch", title), ["epoch", *series], rows)


def _series(history: Sequence[Mapping[str, Any]], ending: str) -> dict[str, list[float]]:
    """Figures per epoch whose names end so, each once."""
    found: dict[str, list[float]] = {}
    for key in history[0] if history else ():
        if key.endswith(ending) and isinstance(history[0][key], float):
            values = [float(record[key]) for record in history]
            if values not in found.values():
                found[key] = values
    return found


def _routing(page: Page, found: Mapping[str, Any]) -> None:
    page.heading("Routing")
    members, routing = found["members"], found["routing"]
    page.say(
        f"The router's distribution over {len(members)} specialised teachers, on {routing['instances']:,} instances of "
        f"{found['split']}."
    )
    mean = dict(zip(members, routing["mean"], strict=True))
    page.figure("Mean share", charts.bars("mean share", mean, "share"), ["teacher", "share"], list(mean.items()))
    shares = [record["train/share"] for record in found["histories"].get("distill", []) if "train/share" in record]
    if len(shares) > 1 and len(shares[0]) == len(members):
        series = {name: [float(row[i]) for row in shares] for i, name in enumerate(members)}
        rows = [[str(i), *map(float, row)] for i, row in enumerate(shares)]
        page.figure(
            "Share by epoch", charts.lines("share by epoch", series, "epoch", "share"), ["epoch", *members], rows
        )
    names = found["classes"]
    per_class = {names[int(c)]: values for c, values in routing["per_class"].items()}
    if len(per_class) <= MOST_CLASSES:
        svg = charts.stacked("share by class", per_class, members, "share")
        page.figure("Share by class", svg, ["class", *members], [[name, *v] for name, v in per_class.items()])
    svg = charts.histogram("entropy", routing["entropy"], 0.0, 1.0, "entropy, 1: even, 0: one teacher alone")
    bins = [[f"{i / 20:.2f}", str(round(count))] for i, count in enumerate(routing["entropy"])]
    page.figure("Entropy of an instance's distribution", svg, ["from", "instances"], bins)


def _masks(page: Page, found: Mapping[str, Any]) -> None:
    if not found["masks"]:
        return
    page.heading("Masks")
    page.say("1 leaves a feature as it is, 0 takes it away; a mask that is the same for all instances only rescales.")
    keys = ("mean", "low", "high", "between_features", "between_instances")
    titles = ["mask", "mean", "5 % quantile", "95 % quantile", "spread over features", "spread over instances"]
    rows = [[name, *(float(values[key]) for key in keys)] for name, values in found["masks"].items()]
    means = {name: float(values["mean"]) for name, values in found["masks"].items()}
    page.figure("Mean value of each mask", charts.bars("mask values", means, "mean mask value"), titles, rows)
    page.table(titles, rows)


def _agreement(page: Page, found: Mapping[str, Any]) -> None:
    page.heading("Agreement")
    names, agreement = found["members"], found["agreement"]
    with_student = dict(zip(names, map(float, agreement["with_student"]), strict=True))
    page.figure("Share of predictions in common with the student",
                charts.bars("agreement with the student", with_student, "share"), ["teacher", "share"],
                list(with_student.items()))  # fmt: skip
    svg = charts.heat("agreement between teachers", agreement["between"], names, "", "")
    rows = [[name, *map(float, row)] for name, row in zip(names, agreement["between"], strict=True)]
    page.figure("Share of predictions that two teachers have in common", svg, ["teacher", *names], rows)


def _attention(page: Page, found: Mapping[str, Any], galleries: Sequence[Gallery], split: str) -> None:
    page.heading("Where the networks look")
    if "missing" in found:
        page.say(found["missing"])
        return
    page.say(
        "Grad-CAM: the lighter, the more evidence for the instance's true class; each map relative to its greatest "
        "value. Grey all over: no evidence for that class. Below each map, what the network predicts."
    )
    for gallery in galleries:
        page.pictures(f"Over {gallery.modality}", gallery.titles, gallery.rows)
    for sentence in found["without"].values():
        page.say(sentence)
    if found["drift"]:
        page.say(
            "How alike maps are, on average: the correlation of their pixels, 1 the same, 0 unrelated; of "
            f"{found['instances']} instances of {split} those where all maps of the row vary. -: student and teacher "
            "see different things. Higher after masking than before: nearer to where the student looks."
        )
        header = ["teacher", "masked at", "map over", "with student, before", "after", "before with after", "instances"]
        rows = [[e["teacher"], e["tap"] or "-", e["sees"], *("-" if e[key] is None else e[key] for key in _LIKENESS),
                 str(e["instances"])] for e in found["drift"]]  # fmt: skip
        page.table(header, rows)
    layers = (f"{e['network']} {e['layer']} ({e['sees']}, {e['size'][0]}x{e['size'][1]})" for e in found["layers"])
    page.say(f"Maps are of these features: {', '.join(layers)}.")


def _confusions(page: Page, found: Mapping[str, Any]) -> None:
    names = found["classes"]
    if "average_precision" in found:
        page.heading("Classes")
        page.say(f"Average precision of each class on {found['split']}.")
        networks = found["average_precision"]
        page.table(
            ["class", *networks], [[name, *values] for name, *values in zip(names, *networks.values(), strict=True)]
        )
        return
    if len(names) > MOST_CLASSES:
        return
    page.heading("Confusions")
    page.say(f"Rows: the true class on {found['split']}; columns: the prediction; shares of the row.")
    for network, matrix in found["confusion"].items():
        shares = [[x / max(sum(row), 1) for x in row] for row in matrix]
        svg = charts.heat(f"confusions of {network}", shares, names, "predicted", "true")
        rows = [[name, *map(str, row)] for name, row in zip(names, matrix, strict=True)]
        page.figure(network, svg, ["true", *names], rows)
