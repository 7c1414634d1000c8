"""A training step recorded once and replayed: for small students the launches cost more than the work.

What a recording holds fast: the addresses of inputs and outputs, so batches are copied into the recorded one; and every
number that Python computed, so a step is recorded again when its `key` changes (loss weights, batch size; the learning
rate lies in memory).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..data.feeding.batch import Batch
from ..errors import ConfigError

Parts = dict[str, Tensor]


class Recorder(Protocol):
    """How steps are recorded."""

    def around(self) -> AbstractContextManager[None]:
        """Where every step runs, recorded or not."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """From a function to one that repeats its work on the same memory; does the work not at all, or once."""
        ...


class CudaRecorder:
    """`torch.cuda.CUDAGraph` on a stream of its own, where the steps before the recording run as well."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    @contextmanager
    def around(self) -> Iterator[None]:
        outside = torch.cuda.current_stream()
        self.stream.wait_stream(outside)
        with torch.cuda.stream(self.stream):
            yield
        outside.wait_stream(self.stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                work()
        except RuntimeError as error:
            raise ConfigError(
                f"run.cuda_graph: this step can't be recorded ({str(error).splitlines()[0]}): something in it waits "
                "for the GPU or copies from the host; set run.cuda_graph=false, the run goes on from its checkpoint"
            ) from None
        return graph.replay


def recorder_for(device: torch.device) -> Recorder | None:
    """How steps are recorded on a device, or None where they can't be."""
    return CudaRecorder(device) if device.type == "cuda" else None


@dataclass
class _Recorded:
    batch: Batch
    parts: Parts
    replay: Callable[[], None]


class StepGraph:
    """Runs a step, by replay where it can.

    Args:
        step: from a batch to its detached losses, optimiser step included; of nothing that waits for the device.
        recorder: how steps are recorded.
        warmup: steps with one key that run plainly before it is recorded.
    """

    def __init__(self, step: Callable[[Batch], Parts], recorder: Recorder, warmup: int = 3) -> None:
        self.step, self.recorder, self.warmup = step, recorder, warmup
        self._seen: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, _Recorded] = {}
        self.replays = 0

    def __call__(self, batch: Batch, key: Hashable) -> Parts:
        """The losses of this batch after its step; they are overwritten by the next call."""
        with self.recorder.around():
            return self._run(batch, key)

    def _run(self, batch: Batch, key: Hashable) -> Parts:
        fixed = key
        shapes = tuple((name, x.shape, x.dtype) for name, x in sorted(batch.inputs.items()))
        key = (key, shapes, batch.label.shape, batch.normaliser, batch.share, batch.labelled)
        if key in self._recorded:
            return self._replay(self._recorded[key], batch)
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] <= self.warmup:
            return self.step(batch)
        own = Batch({name: x.clone() for name, x in batch.inputs.items()}, batch.label.clone(), batch.index.clone(),
                      batch.weight.clone(), batch.normaliser, batch.share, batch.closes_step,
                      labelled=batch.labelled,
                      present={name: x.clone() for name, x in batch.present.items()})  # fmt: skip
        out: Parts = {}

        def work() -> None:
            out.update(self.step(own))

        # recordings of other loss weights are over; those of other batch sizes come again each epoch
        self._recorded = {old: one for old, one in self._recorded.items() if old[0] == fixed}  # type: ignore[index]
        self._recorded[key] = _Recorded(own, out, self.recorder.record(work))
        return self._replay(self._recorded[key], batch)

    def _replay(self, recorded: _Recorded, batch: Batch) -> Parts:
        own = recorded.batch
        for name, x in batch.inputs.items():
            own.inputs[name].copy_(x, non_blocking=True)
        present = [(x, batch.present[name]) for name, x in own.present.items()]
        for mine, new in ((own.label, batch.label), (own.index, batch.index), (own.weight, batch.weight), *present):
            mine.copy_(new, non_blocking=True)
        recorded.replay()
        self.replays += 1
        return recorded.parts
