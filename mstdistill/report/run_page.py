"""The page of a run: what was gained, figures, learning curves, routing, masks, agreement, confusions, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..experiment import Experiment
from ..files import write_text
from ..tables import SHOWN, columns_of
from . import charts
from .attention import Gallery
from .budget import Budget
from .curves import add_curves
from .figures import run_figures
from .gain import gain, sentences
from .known import Known
from .page import PAGE, Page, title_of

# Classes up to which tables of classes are drawn; beyond, the numbers are in report.json.
MOST_CLASSES = 40
_LIKENESS = ("before", "after", "kept")


def write_run_page(
    experiment: Experiment, student: nn.Module, known: Known | None = None,
    budget: Budget | None = None,
) -> Path:  # fmt: skip
    """Write a finished run's report.html and report.json into its folder; networks are frozen afterwards.

    Args:
        student: with the weights that the run selected.
        known: what is known of its networks; None: all is measured.
        budget: parts that it doesn't afford are left out; None: the page is whole, however long it takes.
    """
    found, galleries = run_figures(experiment, student, known, budget.affords if budget else lambda seconds: True)
    summary, folder = found["summary"], experiment.folder
    page = Page(
        title_of(summary["task"], summary["target"]),
        f"method {summary['method']}, seed {summary['seed']}, {summary['seconds']:.0f} s",
    )
    _gained(page, found)
    _networks(page, found)
    add_curves(page, found["histories"])
    _routing(page, found)
    _masks(page, found)
    _agreement(page, found)
    _attention(page, found, galleries)
    _confusions(page, found)
    _left_out(page, found, experiment)
    page.heading("Settings")
    page.say("Versions: " + ", ".join(f"{name} {version}" for name, version in summary["versions"].items()) + ".")
    page.text("resolved recipe", found["config"])
    write_text(folder / PAGE, page.render())
    found["page_seconds"] = round(budget.taken(), 3) if budget else None
    write_text(folder / "report.json", json.dumps(found, indent=1))
    return folder / PAGE


def _left_out(page: Page, found: Mapping[str, Any], experiment: Experiment) -> None:
    if found["left_out"]:
        page.heading("Not here")
        how = "" if experiment.task.name == "custom" else f" mstdistill report {experiment.folder} measures it."
        page.say(f"Left out, so that the page costs the run no more than 1 % of its time: "
                 f"{', '.join(found['left_out'])}.{how}")  # fmt: skip


def _gained(page: Page, found: dict[str, Any]) -> None:
    """The first screen; its figures go to the others."""
    shares = not found["dense"] and found["confusion"]  # of independent instances
    counts = {name: sum(map(sum, matrix)) for name, matrix in found["confusion"].items()} if shares else {}
    found["gain"] = gain(found["summary"], found["split"], counts)
    page.lead(*sentences(found["gain"], found["summary"]["target"]))
    measure, title = columns_of(found["summary"])[0]
    accuracy, intervals = found["gain"][measure], found["gain"]["interval"]
    name = f"{title if measure != 'accuracy' else title.capitalize()} on {found['split']}"
    if not intervals:
        page.figure(name, charts.bars(name, accuracy, title), ["network", title], list(accuracy.items()))
        return
    ends = {one: intervals.get(one, (share, share)) for one, share in accuracy.items()}
    halves = {one: (accuracy[one] - low, high - accuracy[one]) for one, (low, high) in ends.items()}
    rows = [[one, share, *intervals.get(one, ("–", "–"))] for one, share in accuracy.items()]
    page.figure(f"{name}, with 95 % intervals", charts.intervals(name, accuracy, halves, "accuracy"),
                ["network", "accuracy", "low", "high"], rows)  # fmt: skip


def _networks(page: Page, found: Mapping[str, Any]) -> None:
    page.heading("Networks")
    networks, split = found["summary"]["networks"], found["split"]
    columns = [(split, key, f"{split} {title}") for key, title in columns_of(found["summary"])]
    if split != "validation" and "validation" in networks[-1]:
        columns += [("validation", key, f"validation {title}") for key, title in columns_of(found["summary"])
                    if key in SHOWN]  # fmt: skip
    rows = [[e["name"], " + ".join(e["sees"]), *(float(e[of][key]) if of in e else "–" for of, key, _ in columns)]
            for e in networks]  # fmt: skip
    page.table(["network", "sees", *(title for *_, title in columns)], rows)


def _routing(page: Page, found: Mapping[str, Any]) -> None:
    if "members" not in found:
        return
    page.heading("Routing")
    members, routing = found["members"], found.get("routing")
    if routing:
        page.say(
            f"The router's distribution over {len(members)} specialised teachers, on {routing['instances']:,} "
            f"instances of {found['split']}."
        )
    with page.side_by_side():
        if routing:
            mean = dict(zip(members, routing["mean"], strict=True))
            page.figure(
                "Mean share", charts.bars("mean share", mean, "share"), ["teacher", "share"], list(mean.items())
            )
        shares = [record["train/share"] for record in found["histories"].get("distill", []) if "train/share" in record]
        if len(shares) > 1 and len(shares[0]) == len(members):
            series = {name: [float(row[i]) for row in shares] for i, name in enumerate(members)}
            rows = [[str(i), *map(float, row)] for i, row in enumerate(shares)]
            chart = charts.lines("share by epoch", series, "epoch", "share")
            page.figure("Share by epoch, in training", chart, ["epoch", *members], rows)
        if routing:
            _instances(page, found, routing)


def _instances(page: Page, found: Mapping[str, Any], routing: Mapping[str, Any]) -> None:
    members, names = found["members"], found["classes"]
    per_class = {names[int(c)]: values for c, values in routing["per_class"].items()}
    if len(per_class) <= MOST_CLASSES:
        svg = charts.stacked("share by class", per_class, members, "share")
        page.figure("Share by class", svg, ["class", *members], [[name, *v] for name, v in per_class.items()])
    svg = charts.histogram("entropy", routing["entropy"], 0.0, 1.0, "entropy, 1: even, 0: one teacher alone")
    bins = [[f"{i / 20:.2f}", str(round(count))] for i, count in enumerate(routing["entropy"])]
    page.figure("Entropy of an instance's distribution", svg, ["from", "instances"], bins)


def _masks(page: Page, found: Mapping[str, Any]) -> None:
    if not found.get("masks"):
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
    if "agreement" not in found:
        return
    page.heading("Agreement")
    names, agreement = found["members"], found["agreement"]
    with_student = dict(zip(names, map(float, agreement["with_student"]), strict=True))
    page.figure("Share of predictions in common with the student",
                charts.bars("agreement with the student", with_student, "share"), ["teacher", "share"],
                list(with_student.items()))  # fmt: skip
    svg = charts.heat("agreement between teachers", agreement["between"], names, "", "")
    rows = [[name, *map(float, row)] for name, row in zip(names, agreement["between"], strict=True)]
    page.figure("Share of predictions that two teachers have in common", svg, ["teacher", *names], rows)


def _attention(page: Page, all_found: Mapping[str, Any], galleries: Sequence[Gallery]) -> None:
    if "attention" not in all_found:
        return
    page.heading("Where the networks look")
    found, split = all_found["attention"], all_found["split"]
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
    with page.side_by_side():
        for network, matrix in found["confusion"].items():
            shares = [[x / max(sum(row), 1) for x in row] for row in matrix]
            svg = charts.heat(f"confusions of {network}", shares, names, "predicted", "true")
            rows = [[name, *map(str, row)] for name, row in zip(names, matrix, strict=True)]
            page.figure(network, svg, ["true", *names], rows)
