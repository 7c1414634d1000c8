"""Every stage and every method on toy data, under whatever launch it was started by: the columns of the table.

python -m tests.distributed.program OUT BATCH ACCUMULATE COLUMN[,COLUMN...] [fsdp2]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mstdistill import Teacher, distill
from mstdistill.engine.seeding import initialising
from mstdistill.errors import MstdistillError
from mstdistill.methods import BASELINES
from tests import toy
from tests.conftest import TensorSplit

# its own stages, then each method of the comparison
OWN = ("mst", "live", "maps")
COLUMNS = (*OWN, *BASELINES)
SHORT = {"cotrain": {"epochs": 2}, "specialise": {"epochs": 1}, "distill": {"epochs": 2}}
OPTIONS: dict[str, dict[str, Any]] = {"crd": {"negatives": 16}, "mgdfr": {"repeats": 2}}


class Maps(nn.Module):
    """Convolutions and batch norms on 8x8 images, joined."""

    def __init__(self, views: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(views, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.fc = nn.Linear(width, 3)

    def forward(self, *views: Tensor) -> Tensor:
        maps: Tensor = self.down(self.conv(torch.cat(views, dim=1)))
        logits: Tensor = self.fc(maps.mean(dim=(2, 3)))
        return logits


def images(count: int, seed: int) -> TensorSplit:
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count,), generator=g)
    forms = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    clear = forms[label] + 0.5 * torch.randn(count, 1, 8, 8, generator=g)
    noisy = forms[label] + 2.0 * torch.randn(count, 1, 8, 8, generator=g)
    return TensorSplit({"m1": noisy, "m2": clear}, label, f"images-{count}-{seed}")


def column(name: str, out: Path, settings: dict[str, Any]) -> None:
    """Train one column's run."""
    if name == "maps":
        with initialising(0, "maps"):
            student = Maps(1, 4)
            teachers = [Teacher("both", Maps(2, 6), ("m1", "m2"), ("conv", "down")),
                        Teacher("other", Maps(1, 6), ("m2",), ("down",))]  # fmt: skip
        distill(student, teachers, images(75, 1), images(30, 2), "m1", out=out, quiet=True,
                settings=toy.merged(toy.SETTINGS, {**settings, **SHORT}))  # fmt: skip
        return
    own: dict[str, Any] = {**SHORT}
    if name == "live":
        own |= {"routing": {"k": 2, "balance": "CV"}, "distill": {"epochs": 2, "cache": {"mode": "never"}}}
    if name not in OWN:
        own |= {"method": name, "baseline": {"teacher_epochs": 2, "options": OPTIONS.get(name, {})},
                "alone": {"enabled": False}}  # fmt: skip
    toy.run(out, count=75, **toy.merged(own, settings))


def main() -> None:
    out, batch, accumulate, columns = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(",")
    if sys.argv[5:] == ["fsdp2"]:
        from mstdistill.engine import loop
        from tests import fully_sharded

        loop.join = fully_sharded.join
    settings = {"batch_size": batch, "accumulate": accumulate, "run": {"checkpoint_seconds": 1e6}}
    for name in columns:
        try:
            column(name, out / name, settings)
        except MstdistillError as error:  # refused, by all processes alike
            (out / name).mkdir(parents=True, exist_ok=True)
            (out / name / "refused.txt").write_text(str(error))


if __name__ == "__main__":
    main()
