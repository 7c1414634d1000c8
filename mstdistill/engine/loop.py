"""The only training loop. A stage gives it a module, a loss and a validation; it gives back the selected weights.

Everything that decides the numbers is either stateless (order of data, learning rate, loss weights: functions of seed,
epoch and step) or in the checkpoint (weights, optimiser, random state, best so far), so that a run resumed from any
checkpoint continues bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import ranks
from ..config import OptimSettings, RunSettings
from ..data.feeding.batch import Batch
from ..data.feeding.loader import Loader
from ..errors import NonFiniteError
from .batch_norm import Rows, over_processes, own_kinds
from .checkpoint import CheckpointStore
from .graph import Recorder, StepGraph, recorder_for
from .join import join
from .joined import State
from .optimizer import learning_rate
from .progress import Bar, Screen
from .seeding import random_state, restore_random_state, seed_all
from .stopping import Stopping, error

# stage, steps done and in all, epochs in all, figures of the finished epochs
Told = Callable[[str, int, int, int, Sequence[Mapping[str, Any]]], None]


class Stage(Protocol):
    """What the loop needs of a stage.

    Attributes:
        name: for folders and progress.
    """

    name: str

    @property
    def module(self) -> nn.Module:
        """What learns."""
        ...

    def losses(self, module: nn.Module, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Losses of a micro-batch, `loss` (minimised) among them; the others are reported. `module` may be wrapped."""
        ...

    def validate(self, module: nn.Module, epoch: int) -> dict[str, Any]:
        """Figures of an epoch; with `selection` the epoch with its lowest value is kept, else the last. `module` is
        what learns, unwrapped."""
        ...


@dataclass
class Fit:
    """What a finished stage gives back.

    Attributes:
        state: the selected weights, on the CPU.
        best_epoch: which epoch they are of.
        history: figures per epoch.
    """

    state: State
    best_epoch: int
    history: list[dict[str, Any]]


@dataclass
class _Position:
    """Where a run stands."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_value: float = math.inf
    best_epoch: int = -1
    best_state: State | None = None


class Trainer:
    """Runs stages on an Accelerator.

    Args:
        accelerator: from `launch.start`.
        run: checkpoint and log settings.
        seed: of the run.
        screen: for people.
        observe: called after every optimiser step with the stage's name, the step and the step's losses.
        told: called then too, of where the stage stands.

    Attributes:
        recorder: how a step is recorded where `run.cuda_graph` is set; None: not on this device.
    """

    def __init__(
        self,
        accelerator: Any,
        run: RunSettings,
        seed: int,
        screen: Screen,
        observe: Callable[[str, int, Mapping[str, Tensor]], None] | None = None,
        told: Told | None = None,
    ) -> None:
        self.accelerator, self.run, self.seed, self.screen, self.observe = accelerator, run, seed, screen, observe
        self.told = told
        self.stopping = Stopping()
        self.recorder: Recorder | None = recorder_for(accelerator.device) if run.cuda_graph else None

    def fit(self, stage: Stage, loader: Loader, settings: OptimSettings, store: CheckpointStore) -> Fit:
        """Train a stage to its end, from its newest checkpoint where there is one.

        Raises:
            NonFiniteError: NaN or Inf in a loss; the healthy state before it was saved.
            Interrupted: asked to stop; the state was saved.
        """
        seed_all(self.seed, stage.name, ranks.rank())
        stage.module.to(self.accelerator.device)
        own = own_kinds(stage.module) if ranks.world_size() > 1 else set()
        if own:
            self.screen.say(f"{stage.name}: {', '.join(sorted(own))}: batch norms of other kinds than PyTorch's take "
                            "their figures from their own process's rows")  # fmt: skip
        with over_processes(stage.module) as rows:
            return self._fit(_Fitting(self, stage, loader, settings, store, rows))

    def _fit(self, fitting: _Fitting) -> Fit:
        stage, loader, settings, store = fitting.stage, fitting.loader, fitting.settings, fitting.store
        title, per_epoch, position = stage.name, loader.steps_per_epoch, fitting.position
        try:
            with (
                self.stopping.at_next_step(),
                self.screen.task(title, settings.epochs * per_epoch, position.epoch * per_epoch + position.step) as bar,
            ):
                while position.epoch < settings.epochs:
                    fitting.epoch(bar)
            state = position.best_state if position.best_state is not None else fitting.joined.weights()
            store.finish()
        finally:
            store.close()
            fitting.joined.close()
        return Fit(state, position.best_epoch if position.best_epoch >= 0 else settings.epochs - 1, position.history)

    def asked(self, number: int) -> int:
        """The signal that asks for a stop after this step, or 0; the ranks agree, which costs a round trip, so they
        look now and then."""
        if ranks.world_size() > 1:
            return self.stopping.agreed(self.accelerator.device) if number % 8 == 7 else 0
        return self.stopping.asked


class _Fitting:
    """One stage being trained."""

    def __init__(
        self, trainer: Trainer, stage: Stage, loader: Loader, settings: OptimSettings, store: CheckpointStore,
        rows: Rows,
    ) -> None:  # fmt: skip
        self.trainer, self.stage, self.loader, self.settings, self.store = trainer, stage, loader, settings, store
        self.rows = rows
        self.accelerator, self.run = trainer.accelerator, trainer.run
        recorded = self._can_record()
        if self.run.cuda_graph and getattr(stage, "recordable", None) is not None and not recorded:
            trainer.screen.say(f"{stage.name}: steps are not recorded: that takes one GPU, adam or adamw, no "
                               "accumulation, precision no or bf16, no mixup, and teacher logits of the data as they "
                               "are held on the GPU")  # fmt: skip
        self.joined = join(self.accelerator, stage.module, settings, recorded, loader.batch_size)
        self.module = self.joined.module
        self.position = self._resume()
        recorder = self.trainer.recorder
        self.graph = StepGraph(self._learn, recorder) if recorded and recorder is not None else None
        self.saved = time.monotonic()

    def epoch(self, bar: Bar) -> None:
        """The rest of the current epoch, its validation and perhaps a checkpoint."""
        position, per_epoch = self.position, self.loader.steps_per_epoch
        self.module.train()
        for micros in _steps(self.loader.epoch(position.epoch, position.step)):
            number = position.epoch * per_epoch + position.step
            self.joined.set_rate(learning_rate(self.settings, number, self.settings.epochs * per_epoch))
            parts = self._step(micros, number)
            position.step += 1
            bar.advance()
            self._tell()
            if self.trainer.observe is not None:
                self.trainer.observe(self.stage.name, number, parts)
            if (
                self.run.checkpoint_steps
                and (number + 1) % self.run.checkpoint_steps == 0
                and position.step < per_epoch
            ):
                self._save()
            if asked := self.trainer.asked(number):
                self._save()
                self.store.finish()
                raise error(asked, f"in {self.stage.name}, epoch {position.epoch}, step {position.step}; state saved")
        self._close_epoch(bar)
        self._tell()
        due = time.monotonic() - self.saved >= self.run.checkpoint_seconds
        # clocks differ, and saving takes all processes
        if position.epoch == self.settings.epochs or ranks.any_rank(due, self.accelerator.device):
            self._save()

    def _tell(self) -> None:
        if self.trainer.told is not None:
            position, per_epoch, epochs = self.position, self.loader.steps_per_epoch, self.settings.epochs
            done = position.epoch * per_epoch + position.step
            self.trainer.told(self.stage.name, done, epochs * per_epoch, epochs, position.history)

    def _can_record(self) -> bool:
        """Whether this stage's steps are recorded: asked for, of one micro-batch on one device, with nothing in between
        that looks at the device."""
        return (
            self.run.cuda_graph
            and self.trainer.recorder is not None
            and getattr(self.stage, "recordable", False)
            and self.loader.accumulate == 1
            and self.loader.pairs is None
            and ranks.world_size() == 1
            and self.settings.optimizer != "sgd"
            and getattr(self.accelerator, "scaler", None) is None
        )

    def _learn(self, batch: Batch) -> dict[str, Tensor]:
        """Forward, backward and the optimiser's step of one batch."""
        losses = self.stage.losses(self.module, batch, self.position.epoch)
        self.joined.backward(losses["loss"], closes_step=True)
        self.joined.step()
        return {name: value.detach().to(torch.float64) for name, value in losses.items()}

    def _at_hand(self, batch: Batch) -> Batch:
        """A batch on the device, as the stage learns from it."""
        return self.loader.varied(batch.to(self.accelerator.device), self.position.epoch)

    def _step(self, micros: Iterator[Batch], number: int) -> dict[str, Tensor]:
        """One optimiser step over its micro-batches; returns this rank's part of the step's losses."""
        if self.graph is not None:
            batch = self._at_hand(next(micros))
            parts = self.graph(batch, self.stage.fixed(self.position.epoch))  # type: ignore[attr-defined]
            self._check_finite(parts, number, stepped=True)
            self._add_up(parts, batch.normaliser)
            return parts
        joined, parts = self.joined, {}
        for batch in micros:
            batch = self._at_hand(batch)
            self.rows.look(batch.instances)
            with joined.around(batch.closes_step):
                losses = self.stage.losses(self.module, batch, self.position.epoch)
                self._check_finite(losses, number)
                joined.backward(losses["loss"], batch.closes_step)
            for name, value in losses.items():
                wide = value.detach().to(torch.float64)
                parts[name] = parts[name] + wide if name in parts else wide
        joined.step()
        self._add_up(parts, batch.normaliser)
        return parts

    def _add_up(self, parts: Mapping[str, Tensor], normaliser: float) -> None:
        sums, instances = self.position.sums, normaliser * ranks.world_size()
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value * instances

    def _check_finite(self, losses: Mapping[str, Tensor], number: int, stepped: bool = False) -> None:
        # a look at the numbers waits for a GPU, so there it comes only now and then
        if self.accelerator.device.type != "cpu" and number % self.run.log_every:
            return
        bad = [name for name, value in losses.items() if not bool(torch.isfinite(value).all())]
        if not ranks.any_rank(bool(bad), self.accelerator.device):
            return
        note = "the last good checkpoint is kept"
        if not stepped and not ranks.any_rank(not self.joined.finite(), self.accelerator.device):
            self.joined.forget()
            self._save()
            self.store.finish()
            note = "the state before this step was saved"
        names = ", ".join(name for name in bad if name != "loss") or "the loss of another process"
        where = f"{self.stage.name}, epoch {self.position.epoch}, step {self.position.step}"
        raise NonFiniteError(f"NaN or Inf in {names} at {where}; {note}; lower the learning rate or look at the data")

    def _close_epoch(self, bar: Bar) -> None:
        position = self.position
        record: dict[str, Any] = {"epoch": position.epoch}
        for name, value in sorted(self._global_sums().items()):
            record[f"train/{name}"] = (value / len(self.loader.split)).tolist()
        self.module.eval()
        with torch.no_grad():
            record.update(self.stage.validate(self.joined.inner, position.epoch))
        selection = record.get("selection")
        if selection is not None and selection < position.best_value:
            position.best_value, position.best_epoch = selection, position.epoch
            position.best_state = self.joined.weights()
        position.history.append(record)
        scalars = {f"{self.stage.name}/{k}": v for k, v in record.items() if isinstance(v, float)}
        self.accelerator.log(scalars, step=position.epoch)
        position.epoch, position.step, position.sums = position.epoch + 1, 0, {}
        bar.remark(_note(record))

    def _global_sums(self) -> dict[str, Tensor]:
        # a rank's loss is scaled so that the mean over the ranks is the global figure
        return {name: ranks.total(value) / ranks.world_size() for name, value in self.position.sums.items()}

    def _save(self) -> None:
        position = self.position
        moments, groups = self.joined.moments()
        parts: dict[str, Mapping[str, Tensor]] = {
            "model": self.joined.weights(),
            "optimizer": moments,
            "random": _gather_random(),
            "sums": self._global_sums(),
        }
        if position.best_state is not None:
            parts["best"] = position.best_state
        scaler = getattr(self.accelerator, "scaler", None)
        facts = {
            "epoch": position.epoch,
            "step": position.step,
            "history": position.history,
            "best_value": position.best_value if math.isfinite(position.best_value) else None,
            "best_epoch": position.best_epoch,
            "groups": groups,
            "world": ranks.world_size(),
            "whole_batch": self._whole_batch(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        # epoch and step as one growing number: the newest sorts last
        self.store.save(position.epoch * 1_000_000 + position.step, parts, facts)
        self.saved = time.monotonic()

    def _whole_batch(self) -> int:
        """Instances of an optimiser's step, over all processes."""
        return self.loader.batch_size * self.loader.accumulate * ranks.world_size()

    def _loss_of_any(self, epoch: int) -> Tensor:
        batch = self.loader.first().to(self.accelerator.device)
        return self.stage.losses(self.module, batch, epoch)["loss"]

    def _resume(self) -> _Position:
        found = self.store.load()
        if found is None:
            return _Position()
        facts = found.facts
        self.joined.restore(found.groups["model"], found.groups.get("optimizer", {}), facts["groups"])
        if facts["world"] == ranks.world_size():
            restore_random_state({name: rows[ranks.rank()] for name, rows in found.groups["random"].items()})
        if facts["scaler"] and getattr(self.accelerator, "scaler", None) is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        self.joined.settle(lambda: self._loss_of_any(facts["epoch"]))
        self.trainer.screen.say(f"{self.stage.name}: continues at epoch {facts['epoch']}, step {facts['step']}")
        device = self.accelerator.device
        return _Position(
            epoch=facts["epoch"],
            # the order of instances is the run's, whatever a step's batch
            step=facts["step"] * facts.get("whole_batch", self._whole_batch()) // self._whole_batch(),
            history=facts["history"],
            sums={name: value.to(device) for name, value in found.groups.get("sums", {}).items()},
            best_value=math.inf if facts["best_value"] is None else facts["best_value"],
            best_epoch=facts["best_epoch"],
            best_state=found.groups.get("best"),
        )


def _steps(batches: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """Micro-batches grouped by optimiser step, lazily."""
    for first in batches:

        def group(first: Batch = first) -> Iterator[Batch]:
            yield first
            last = first
            while not last.closes_step:
                last = next(batches)
                yield last

        yield group()


def _gather_random() -> dict[str, Tensor]:
    """Every rank's random state, [ranks, ...]."""
    own = random_state()
    if ranks.world_size() == 1:
        return {name: x.unsqueeze(0) for name, x in own.items()}
    device = torch.device("cuda") if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
    gathered = {}
    for name, x in own.items():
        rows = [torch.empty_like(x, device=device) for _ in range(ranks.world_size())]
        torch.distributed.all_gather(rows, x.to(device))
        gathered[name] = torch.stack(rows).cpu()
    return gathered


def _note(record: Mapping[str, Any]) -> str:
    shown = [
        key
        for key in ("train/loss", "selection", "validation/accuracy", "validation/map_macro")
        if isinstance(record.get(key), float)
    ]
    return "  ".join(f"{key.rsplit('/', maxsplit=1)[-1]} {record[key]:.4f}" for key in shown)
