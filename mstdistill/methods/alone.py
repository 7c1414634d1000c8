"""The student with its labels alone, as a method: the floor of a comparison.

loss = CE(z_s, y)

It trains `distill.epochs` epochs. The row "student alone" of every run is another thing: the same student with as many
epochs as the three stages of mst have in all.
"""

from __future__ import annotations

from ..experiment import Experiment
from .baseline import Baseline
from .comparison import compare
from .mst import Outcome


class Alone(Baseline):
    """Nobody teaches; any task."""

    name = "alone"
    taught_by = "nobody"


def run(experiment: Experiment) -> Outcome:
    """Train the student."""
    return compare(experiment, Alone)
