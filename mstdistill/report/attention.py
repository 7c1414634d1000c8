"""Where teachers look before and after masking, beside the student: Grad-CAMs of a few instances, and how alike the
maps are over many (knowledge drift, as the paper pictures it)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data.feeding.batch import Batch
from ..data.view import modality_of
from ..experiment import Experiment
from ..teachers.ensemble import Ensemble
from ..teachers.tap import call, freeze
from .gradcam import Changes, Place, correlation, enlarged, grad_cam, pictures, places
from .overlay import drawn

# Instances that likeness is averaged over; that are shown; and of those, first ones of different classes.
COMPARED, SHOWN, FIRSTS = 256, 6, 4
# Rows of the dry run that finds the layers.
_DRY = 8

Networks = Mapping[str, tuple[nn.Module, tuple[str, ...]]]


@dataclass(frozen=True)
class Column:
    """A network's maps over one of its inputs.

    Attributes:
        network: "student", or the teacher's name.
        tap: where it is masked; None: as it was trained.
        view: the input.
        place: the feature.
        changes: the masks that are plugged in.
    """

    network: str
    module: nn.Module
    modalities: tuple[str, ...]
    view: str
    place: Place
    tap: str | None = None
    changes: Changes = ()

    @property
    def title(self) -> str:
        """A heading."""
        if self.network == "student":
            return "student"
        return f"{self.network}, before masking" if self.tap is None else f"{self.network}, masked at {self.tap}"


@dataclass
class Gallery:
    """Pictures over one modality.

    Attributes:
        modality: what they lie over.
        titles: of the columns; the first is the input itself.
        rows: an instance each: its true class, and by column a data URI and the predicted class.
    """

    modality: str
    titles: list[str]
    rows: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)


def attention(
    experiment: Experiment, teachers: Networks, student: nn.Module, ensemble: Ensemble | None, split: str
) -> tuple[dict[str, Any], list[Gallery]]:
    """Maps of the student and of every teacher with weights, and how alike they are.

    Args:
        teachers: by name, with what they see.
        ensemble: with trained masks; None: the method has none.

    Returns:
        Figures for JSON, and pictures. `missing` says why there are none; else `layers`, `drift`, `samples`,
        `instances`, and in `without` a sentence for each teacher that has no map.
    """
    target = experiment.target
    views = sorted({target, *(view for _, seen in teachers.values() for view in seen)})
    dry = experiment.feeds.loader(split, views).first(_DRY).to(experiment.accelerator.device)
    if target not in pictures(dry.inputs, [target]):
        shape = "x".join(map(str, dry.inputs[target].shape[1:]))
        return {"missing": f"No maps: the student sees {modality_of(target)} ({shape}), which is no picture."}, []
    columns, without = _columns(experiment, teachers, student, ensemble, dry)
    if not columns:
        return {"missing": "No maps: no convolutional feature of the student is a map of its picture."}, []
    chosen, labels = _choose(experiment, columns, split)
    looked = _Look(columns, chosen, labels, _names(experiment))
    for start, batch in _batches(experiment, columns, split):
        looked.add(start, batch, _classes(experiment, batch.label))
    size = dry.inputs[target].shape[2:]
    comparable = {view for view in views
                  if modality_of(view) == modality_of(target) and dry.inputs[view].shape[2:] == size}  # fmt: skip
    return {
        "instances": len(labels),
        "layers": [{"network": c.network, "sees": modality_of(c.view), "layer": c.place.layer,
                    "size": list(c.place.size)} for c in columns if c.tap is None],
        "drift": looked.drift(comparable),
        "samples": looked.samples(),
        "without": without,
    }, list(looked.galleries.values())  # fmt: skip


def _columns(
    experiment: Experiment, teachers: Networks, student: nn.Module, ensemble: Ensemble | None, dry: Batch
) -> tuple[list[Column], dict[str, str]]:
    """The student first, each teacher before masking followed by its masked forms; and why a teacher has none."""
    target, classes = experiment.target, _classes(experiment, dry.label)
    own = places(freeze(student), dry.inputs, (target,), classes, "student").get(target)
    if own is None:
        return [], {}
    columns, without = [Column("student", student, (target,), target, own)], {}
    for name, (module, seen) in teachers.items():
        found = places(freeze(module), dry.inputs, seen, classes, f"teacher {name!r}")
        for view in sorted(found, key=lambda view: view != target):
            columns.append(Column(name, module, seen, view, found[view]))
            for tap, changes in _masked(ensemble, name):
                columns.append(Column(name, module, seen, view, found[view], tap, changes))
        if not found:
            sees = " and ".join(map(modality_of, seen))
            without[name] = f"No map of teacher {name}: it has no convolutional feature that is a map of its {sees}."
    return columns, without


def _masked(ensemble: Ensemble | None, teacher: str) -> Iterator[tuple[str, Changes]]:
    """Each tap of a teacher, with the masks that are plugged in when that specialised teacher runs."""
    if ensemble is None:
        return
    before: list[tuple[str, nn.Module]] = []
    for member in ensemble.members:
        if member.tap is not None and member.mask is not None and ensemble.teachers[member.teacher].name == teacher:
            mine = (member.tap, ensemble.masks[member.mask])
            yield member.tap, [*before, mine]
            if ensemble.mask_mode == "cumulative":
                before.append(mine)


def _names(experiment: Experiment) -> list[str]:
    return list(experiment.task.class_names) or [str(i) for i in range(experiment.task.num_classes)]


def _classes(experiment: Experiment, label: Tensor) -> Tensor:
    """[B] true classes; of dense labels the most frequent one that counts."""
    if label.dim() == 1:
        return label
    if label.dim() == 2:  # of several classes at once the first
        return label.clamp(min=0).argmax(dim=1)
    rows = [row if experiment.task.ignore_index is None else row[row != experiment.task.ignore_index]
            for row in label.flatten(1)]  # fmt: skip
    return torch.stack([torch.bincount(row, minlength=experiment.task.num_classes).argmax() for row in rows])


def _said(logits: Tensor) -> Tensor:
    """[B] predicted classes; of dense predictions the most frequent."""
    predicted = logits.argmax(dim=1)
    return predicted if predicted.dim() == 1 else predicted.flatten(1).mode(dim=1).values


def _batches(experiment: Experiment, columns: Sequence[Column], split: str) -> Iterator[tuple[int, Batch]]:
    """The split's first instances, with the position of each batch's first."""
    views = sorted({view for column in columns for view in column.modalities})
    start = 0
    for batch in experiment.feeds.loader(split, views).rows(0, min(COMPARED, len(experiment.splits[split]))):
        yield start, batch.to(experiment.accelerator.device)
        start += len(batch.index)


@torch.no_grad()
def _choose(experiment: Experiment, columns: Sequence[Column], split: str) -> tuple[list[int], list[int]]:
    """Instances to show: first ones of some classes, then those that a teacher and the student see differently, then
    of more classes; and the classes of all that are looked at."""
    networks = {column.network: column for column in columns if column.tap is None}
    labels: list[int] = []
    differ: list[bool] = []
    for _, batch in _batches(experiment, columns, split):
        said = torch.stack([_said(call(c.module, batch.inputs, c.modalities)) for c in networks.values()])
        differ += (said != said[0]).any(dim=0).tolist()
        labels += _classes(experiment, batch.label).tolist()
    firsts = [labels.index(label) for label in dict.fromkeys(labels)]
    order = dict.fromkeys([*firsts[:FIRSTS], *(i for i, other in enumerate(differ) if other), *firsts[FIRSTS:]])
    return sorted(list(order)[:SHOWN]), labels


class _Look:
    """Goes over batches; gathers likeness of all instances, pictures of the chosen ones."""

    def __init__(
        self, columns: Sequence[Column], chosen: Sequence[int], labels: Sequence[int], names: Sequence[str]
    ) -> None:
        self.columns, self.chosen, self.labels, self.names = columns, chosen, labels, names
        self.galleries: dict[str, Gallery] = {}
        for column in columns:
            gallery = self.galleries.setdefault(column.view, Gallery(modality_of(column.view), ["input"]))
            gallery.titles.append(column.title)
        # by column, batch by batch: correlation with the student's map, and with the same map before masking
        self.with_student: list[list[Tensor]] = [[] for _ in columns]
        self.with_before: list[list[Tensor]] = [[] for _ in columns]

    def add(self, start: int, batch: Batch, classes: Tensor) -> None:
        """Maps of a batch whose first instance is the split's `start`-th."""
        made: dict[tuple[str, str | None, str], tuple[Tensor, Tensor]] = {}
        shown = [i for i in self.chosen if start <= i < start + len(classes)]
        cells: dict[tuple[int, str], list[tuple[str, str]]] = {
            (i, view): [(drawn(batch.inputs[view][i - start]), "")] for i in shown for view in self.galleries
        }
        student = before = torch.empty(0)
        for number, c in enumerate(self.columns):
            key = (c.network, c.tap, c.place.layer)  # one feature may be a map of two pictures
            if key not in made:
                made[key] = grad_cam(c.module, batch.inputs, c.modalities, c.place.layer, classes, c.changes, c.network)
            maps, logits = made[key]
            large = enlarged(maps, batch.inputs[c.view].shape[2:])
            student = student if number else large
            before = before if c.tap is not None else large
            if large.shape == student.shape:
                self.with_student[number].append(correlation(large, student).cpu())
            self.with_before[number].append(correlation(large, before).cpu())
            said = _said(logits)
            for i in shown:
                picture = drawn(batch.inputs[c.view][i - start], maps[i - start])
                cells[i, c.view].append((picture, self.names[int(said[i - start])]))
        for (i, view), row in cells.items():
            self.galleries[view].rows.append((self.names[self.labels[i]], row))

    def drift(self, comparable: set[str]) -> list[dict[str, Any]]:
        """For each teacher, input and mask the mean correlations, over the instances where all maps vary."""
        found = []
        base = 0
        for number, c in enumerate(self.columns[1:], start=1):
            base = number if c.tap is None else base
            following = self.columns[number + 1] if number + 1 < len(self.columns) else None
            if c.tap is None and following is not None and following.tap is not None:
                continue  # it stands beside its masked forms
            kept = torch.cat(self.with_before[number])
            values = {"before": None, "after": None, "kept": kept if c.tap is not None else None}
            if c.view in comparable:
                values["before"] = torch.cat(self.with_student[base])
                values["after"] = torch.cat(self.with_student[number]) if c.tap is not None else None
            counted = ~kept.isnan()
            for column in values.values():
                counted = counted if column is None else counted & ~column.isnan()
            found.append({
                "teacher": c.network, "tap": c.tap, "sees": modality_of(c.view), "instances": int(counted.sum()),
                **{name: float(x[counted].mean()) if x is not None and bool(counted.any()) else None
                   for name, x in values.items()},
            })  # fmt: skip
        return found

    def samples(self) -> list[dict[str, Any]]:
        """The shown instances: position in the split, true class, and what each network predicts."""
        found = []
        for number, i in enumerate(self.chosen):
            said = {
                f"{title} ({gallery.modality})": text
                for gallery in self.galleries.values()
                for title, (_, text) in zip(gallery.titles[1:], gallery.rows[number][1][1:], strict=True)
            }
            found.append({"instance": i, "class": self.names[self.labels[i]], "predicted": said})
        return found
