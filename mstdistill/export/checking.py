"""Artefacts beside the student on the same rows, each by its own runtime: agreement, accuracy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.source import UNLABELLED
from .names import Tolerance
from .rows import Rows, batch_of, batches

Run = Callable[[Tensor], Tensor]
# Seconds that an artefact may take over a split; a slower one is tried on every n-th batch of it.
PATIENCE = 10.0


@dataclass
class Agreement:
    """An artefact's figures on some rows.

    Attributes:
        rows: instances seen.
        predictions: how many there are: rows, or pixels of dense logits.
        difference: largest difference of a logit.
        largest: the student's largest logit.
        equal: predictions that are the student's.
        labelled, right, student_right: predictions with a label, the artefact's and the student's right ones.
    """

    rows: int = 0
    predictions: int = 0
    difference: float = 0.0
    largest: float = 0.0
    equal: int = 0
    labelled: int = 0
    right: int = 0
    student_right: int = 0

    def add(self, got: Tensor, want: Tensor, label: Tensor | None, ignore: int | None) -> None:
        """Count a batch of logits [B, C] or [B, C, H, W]."""
        self.rows += len(want)
        if got.shape != want.shape or not torch.isfinite(got).all():
            self.difference = float("inf")
            self.predictions += want.argmax(1).numel()
            return
        self.difference = max(self.difference, float((got - want).abs().max()))
        self.largest = max(self.largest, float(want.abs().max()))
        several = label is not None and label.dim() == 2  # classes, each a yes or no of its own
        ours, theirs = (want > 0, got > 0) if several else (want.argmax(1), got.argmax(1))
        self.predictions += ours.numel()
        self.equal += int((ours == theirs).sum())
        if label is not None:
            counts = label != UNLABELLED
            if ignore is not None:
                counts &= label != ignore
            self.labelled += int(counts.sum())
            self.right += int(((theirs == label) & counts).sum())
            self.student_right += int(((ours == label) & counts).sum())

    def as_dict(self) -> dict[str, Any]:
        """Figures by name; differences are None where a logit is no number, accuracies where nothing is labelled."""
        known, finite = self.labelled or None, math.isfinite(self.difference)
        return {
            "rows": self.rows,
            "predictions": self.predictions,
            "largest_difference": self.difference if finite else None,
            "relative_difference": self.difference / (self.largest or 1.0) if finite else None,
            "equal": self.equal / max(self.predictions, 1),
            "accuracy": known and self.right / known,
            "student_accuracy": known and self.student_right / known,
        }

    def beyond(self, tolerance: Tolerance, random: bool) -> list[str]:
        """What is further off than it may be, in words.

        Args:
            random: the rows are: predictions on them tip over at nothing, so that the logits alone are judged.
        """
        found, figures = [], self.as_dict()
        off = figures["relative_difference"]
        if off is None:
            return ["logits are missing, infinite or no numbers"]
        if off > tolerance.logits:
            found.append(f"a logit differs by {off:.2g} of the largest, {tolerance.logits:g} are allowed")
        if random:
            return found
        differing = self.predictions - self.equal
        if differing > max(1.0, (1 - tolerance.equal) * self.predictions):
            found.append(f"{figures['equal']:.2%} of the predictions are equal, {tolerance.equal:.1%} are wanted")
        lost = self.student_right - self.right
        if lost > max(1.0, tolerance.accuracy * self.labelled):
            found.append(f"{100 * lost / self.labelled:.2f} points of accuracy are lost, {100 * tolerance.accuracy:g} "
                         "are allowed")  # fmt: skip
        return found


@torch.no_grad()
def compare(
    student: Run, runs: Mapping[str, Run], rows: Rows, raw: Run, ignore: int | None, patience: float = PATIENCE
) -> dict[str, Agreement]:
    """Every artefact beside the student, in one pass over the rows.

    Args:
        student: from views to logits.
        runs: by name, from what `raw` makes of a view to logits.
        ignore: the label that doesn't count.
        patience: seconds that each may take, by the time of its first batch.
    """
    found = {name: Agreement() for name in runs}
    steps = dict.fromkeys(runs, 1)
    count = -(-len(rows) // batch_of(rows)) if len(rows) else 0
    for number, (view, label) in enumerate(batches(rows)):
        turn = [name for name, step in steps.items() if number % step == 0]
        if not turn:
            continue
        want, given = student(view).float(), raw(view)
        for name in turn:
            started = time.perf_counter()
            got = runs[name](given)
            if number == 0:
                steps[name] = max(1, math.ceil(count * (time.perf_counter() - started) / patience))
            found[name].add(got.float(), want, label, ignore)
    return found
