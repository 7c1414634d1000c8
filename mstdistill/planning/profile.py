"""A stage's step as measured at two batch sizes, and by them at any other: a fixed part and one for each instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache

from .ledger import Moment, Phase, Work


@dataclass(frozen=True)
class Sized:
    """One micro-batch's forward and backward pass, and the optimiser's step.

    Attributes:
        phases: "forward", "backward", "step".
        saved: unique bytes kept for the backward pass at the end of the forward pass.
        moved: bytes of the batch as stored, which travel to the device where the data don't lie there.
    """

    batch: int
    phases: Mapping[str, Phase]
    saved: float
    moved: float

    @property
    def flops(self) -> float:
        """Of forward and backward."""
        return sum(work.flops for name in ("forward", "backward") for work in self.phases[name].works)

    @property
    def bytes(self) -> float:
        """Read and written by forward and backward."""
        return sum(work.bytes for name in ("forward", "backward") for work in self.phases[name].works)

    @property
    def operators(self) -> int:
        """Started by forward, backward and step."""
        return sum(len(phase.works) for phase in self.phases.values())


@dataclass(frozen=True)
class Table:
    """A table of constant logits or features [N, M, C, ...] that a stage builds and reads.

    Attributes:
        size: bytes; resident: whether it is held in the device's memory.
        works: kernels of one batch of `batch` rows.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: float
    resident: bool
    batch: int
    works: tuple[Work, ...]


@dataclass(frozen=True, eq=False)  # known by itself: figures made from it are kept
class StageProfile:
    """What a stage needs, on one process.

    Attributes:
        sizes: its step at two batch sizes; exact at the first where it was measured on fake tensors.
        epochs, batch, accumulate: as the recipe says.
        learning: elements that learn, and `learning_bytes` of them; `learning_tensors` is how many tensors they are.
        units: bytes that learn of each unit that FSDP2 shards, what lies in no block first.
        optimiser: bytes of the optimiser's state.
        beside: bytes of all other networks on the device, and of buffers.
        best: bytes of the copy of the best epoch, on the host; checkpoint: of that which is written while training
            goes on.
        loaded: modalities that a batch holds; row_bytes: of an instance of them and its label, as stored.
        held: bytes of data that the host's process holds.
    """

    name: str
    sizes: tuple[Sized, Sized]
    instances: int
    epochs: int
    batch: int
    accumulate: int
    learning: int
    learning_bytes: float
    learning_tensors: int
    units: tuple[float, ...]
    optimiser: float
    beside: float
    buffers: float
    best: float
    checkpoint: float
    loaded: tuple[str, ...]
    row_bytes: float
    held: float
    tables: tuple[Table, ...]
    fake: bool

    @property
    def gathered(self) -> float:
        """Bytes that FSDP2 holds whole at once: what lies in no block, the block that computes and the next one."""
        rest, *blocks = self.units
        return rest + sum(sorted(blocks)[-2:])

    @lru_cache(maxsize=64)  # noqa: B019  profiles are few, and gone with the process
    def at(self, batch: int) -> Sized:
        """The step at another batch size, linear between or beyond the two that were measured."""
        small, large = self.sizes
        if batch == small.batch:
            return small
        share = (batch - small.batch) / (large.batch - small.batch)

        def line(a: float, b: float) -> float:
            return max(0.0, a + (b - a) * share)

        def moment(a: Moment, b: Moment) -> Moment:
            return Moment(*(line(getattr(a, f.name), getattr(b, f.name)) for f in fields(Moment)))

        def works(a: list[Work], b: list[Work]) -> list[Work]:
            if len(a) == len(b):
                return [Work(line(x.flops, y.flops), line(x.bytes, y.bytes), x.half)
                        for x, y in zip(a, b, strict=True)]  # fmt: skip
            # other operators at another size: those of the larger one, with totals on the line
            flops, size = (line(sum(getattr(w, k) for w in a), sum(getattr(w, k) for w in b)) / max(
                1, sum(getattr(w, k) for w in b)) for k in ("flops", "bytes"))  # fmt: skip
            return [Work(w.flops * flops, w.bytes * size, w.half) for w in b]

        phases = {}
        for name, one in small.phases.items():
            other = large.phases[name]
            phases[name] = Phase(works(one.works, other.works), moment(one.fullest, other.fullest),
                                 moment(one.fullest_besides, other.fullest_besides))  # fmt: skip
        return Sized(batch, phases, line(small.saved, large.saved), line(small.moved, large.moved))
