"""What a run knows at its end that its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ..experiment import Experiment


@dataclass(frozen=True)
class Known:
    """What a run knows at its end, so that its page needn't measure it again.

    Attributes:
        matrices: by the final table's names, confusion matrices [C, C] on the split that the page is of.
        precisions: of several classes at once, in place of them: each class's average precision.
        seconds: that one process took, or would have taken, to evaluate these networks there.
    """

    matrices: Mapping[str, Tensor]
    seconds: float
    precisions: Mapping[str, Sequence[float]] = field(default_factory=dict)


def page_split(experiment: Experiment) -> str:
    """The split that pages are of."""
    return "test" if "test" in experiment.splits else "validation"
