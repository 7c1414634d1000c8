"""A run without training: every stage that a method goes through takes two steps under a ledger, on fake tensors.

The experiment, its stages, losses and methods are the real ones. Where code needs real values (an operator whose shapes
depend on data), the same is done with small real batches, and larger ones follow on the line through two sizes.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..config import OptimSettings
from ..data.augment.plan import Augmentation
from ..data.feeding.batch import Batch
from ..data.feeding.loader import Loader
from ..engine.fully_sharded import blocks_of
from ..engine.loop import Fit, Stage, Trainer
from ..engine.optimizer import build_optimizer
from ..engine.progress import Screen
from ..errors import MstdistillError
from ..evaluation import Evaluated, Evaluation, SeveralEvaluation
from ..experiment import Experiment
from ..kernels import mask as kernels_mask
from ..methods import find_method
from ..stages import alone, folds, salience
from ..stages import constant_logits as tables_module
from ..state import state_of
from ..teachers.cache import RESIDENT_BYTES
from ..teachers.ensemble import Ensemble
from ..teachers.feature import Feature
from ..teachers.tap import Teacher, call
from .fused import FusedAttention
from .ledger import HALVES, Answering, Ledger
from .onednn import laid, lay_weights, scratch
from .profile import Sized, StageProfile, Table
from .subject import PlannedSplit, Subject

# Batch sizes of a rehearsal on real tensors.
SMALL = (4, 8)


@dataclass
class _Stand:
    """What stages ask of an accelerator."""

    precision: str
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_processes: int = 1

    def autocast(self) -> AbstractContextManager[Any]:
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast("cpu", half) if half else nullcontext()


class _PlannedTable:
    """In the place of `LogitCache`: a table that was never filled."""

    def __init__(self, table: Table, dtype: torch.dtype, fake: bool) -> None:
        self.shape, self.resident, self.dtype = table.shape, table.resident, dtype
        rows = table.shape[0] if fake else 1
        self.values = torch.zeros(rows, *table.shape[1:], dtype=dtype).expand(table.shape)

    def look(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.resident:
            return self.values, index
        return torch.zeros(len(index), *self.shape[1:], dtype=self.dtype), None


class PlannedExperiment(Experiment):
    """An experiment whose stages are measured instead of trained.

    Attributes:
        profiles: of the stages so far.

    Args:
        on_cpu: the machine's tensors stay in the host's memory.
    """

    def __init__(self, subject: Subject, label: tuple[int, ...], folder: Path, fake: bool, on_cpu: bool) -> None:
        recipe, material = subject.recipe, subject.material
        quiet = Screen(quiet=True)
        student, teachers = material.networks(quiet)
        self.fake, self.on_cpu, self.lay = fake, on_cpu, laid if fake else None
        self.subject = subject
        self.profiles: list[StageProfile] = []
        self.networks = [student, *(teacher.module for teacher in teachers)]
        self._pending: list[Table] = []
        # a fake network can't be copied, but built again
        twin = material.twin(quiet) if recipe.alone.enabled else None
        if twin is not None and on_cpu:  # on a GPU it waits on the host
            self.networks.append(twin)
        self.twin = twin
        splits = {name: PlannedSplit(count, subject.columns, label, material.task.num_classes, not fake)
                  for name, count in subject.counts.items()}  # fmt: skip
        trainer = Trainer(_Stand(recipe.precision), recipe.run.model_copy(update={"cuda_graph": False}), 0, quiet)
        super().__init__(recipe, material.task, splits, student, teachers, folder, trainer, material.target)

    def _look_for_labels(self) -> None:
        """Which instances have none isn't known of data that aren't there."""

    @property
    def partly_labelled(self) -> bool:
        data = self.recipe.data
        return data.unlabelled == "learn" or (data.labelled is not None and data.labelled < 1)

    def _try(self) -> None:
        """Trials look at numbers and copy networks."""

    def try_training(self, teacher: Teacher | None, stages: Sequence[OptimSettings]) -> None:
        """As above."""

    def _compile(self) -> None:
        """Compiled code computes the same; how much faster isn't known."""

    def compiled(self, module: nn.Module, name: str = "student") -> nn.Module:
        return module

    def result(self, name: str) -> Fit | None:
        return None

    def temperatures(
        self,
        logits: Callable[[Batch], Tensor],
        modalities: Sequence[str],
        names: Sequence[str],
        seen: Callable[[Batch], Tensor | None] = lambda batch: None,
    ) -> list[float]:
        return [1.0] * len(names)

    def judge_teachers(self) -> dict[str, Evaluated]:
        return {}

    def evaluate(self, module: nn.Module, view: Sequence[str], split: str) -> Evaluated:
        if self.task.multilabel:
            return SeveralEvaluation(0.0, torch.zeros(2, self.task.num_classes), torch.zeros(2, self.task.num_classes))
        return Evaluation(0.0, torch.eye(self.task.num_classes))

    def build_ensemble(self, mask_mode: str) -> Ensemble:
        ensemble = super().build_ensemble(mask_mode)
        self.networks.append(ensemble)
        # whether variants can share a forward is found by comparing numbers; here shapes must do
        ensemble._check_sharing = _shapes_agree.__get__(ensemble)  # type: ignore[method-assign]
        return ensemble

    def train(
        self, stage: Stage, loader: Loader, settings: OptimSettings, facts: Mapping[str, Any] | None = None
    ) -> Fit:
        batch = min(loader.batch_size, len(loader.split))
        sizes = (batch, 2 * batch) if self.fake else SMALL
        optimizer = build_optimizer(settings, stage.module)
        self._prepare(stage, loader, optimizer)
        small, large = (self._rehearse(stage, loader, optimizer, size) for size in sizes)
        learning = [p for p in stage.module.parameters() if p.requires_grad]
        everything = _storages([*self.networks, stage.module])
        own = _storages_of(learning)
        split = cast(PlannedSplit, loader.split)
        row = sum(split.columns[name].bytes for name in loader.modalities) + 8 * max(1, _count(split.label))
        selects = getattr(settings, "select", "best") == "best"
        state = sum(x.nbytes for x in state_of(stage.module).values())
        moments = sum(x.nbytes for own in optimizer.state.values() for x in own.values() if isinstance(x, Tensor))
        several = settings.epochs > 1
        self.profiles.append(StageProfile(
            name=stage.name,
            sizes=(small, large),
            instances=len(split),
            epochs=settings.epochs,
            batch=batch,
            accumulate=self.recipe.accumulate,
            learning=sum(p.numel() for p in learning),
            learning_bytes=sum(own.values()),
            learning_tensors=len(learning),
            units=_units(stage.module),
            optimiser=moments,
            beside=sum(everything.values()) - sum(own.values()),
            buffers=sum(x.nbytes for x in stage.module.buffers()),
            best=state if selects and several else 0,
            checkpoint=state + moments if several or self.recipe.run.checkpoint_steps else 0,
            loaded=tuple(loader.modalities),
            row_bytes=row,
            held=self.subject.held if self.on_cpu else 0,
            tables=tuple(self._pending),
            fake=self.fake,
        ))  # fmt: skip
        self._pending.clear()
        return Fit(dict(state_of(stage.module)), 0, [{}])

    def table(self, folder: Path, logits_of: Callable[[Batch], Tensor], loader: Loader, dtype: str,
              resident_bytes: float) -> _PlannedTable:  # fmt: skip
        """In the place of `build_cache`."""
        size = min(loader.batch_size, len(loader.split)) if self.fake else SMALL[1]
        ledger = Ledger(lay=self.lay)
        with torch.no_grad(), ledger:
            row = logits_of(self._batch(loader, size).to(self.accelerator.device))
        shape = (len(loader.split), *row.shape[1:])
        kind: torch.dtype = getattr(torch, dtype)
        nbytes = _count(shape) * kind.itemsize
        resident = nbytes <= (RESIDENT_BYTES if self.on_cpu else resident_bytes)
        made = Table(folder.name, shape, dtype, nbytes, resident, size, tuple(ledger.phases["forward"].works))
        self._pending.append(made)
        return _PlannedTable(made, kind, self.fake)

    def _batch(self, loader: Loader, size: int) -> Batch:
        split = cast(PlannedSplit, loader.split)
        rows = torch.arange(size) % len(split)
        inputs, label = split.pick(rows, loader.modalities)
        return Batch(inputs, label, rows, torch.ones(size), float(size), scales=split.scales)

    def _prepare(self, stage: Stage, loader: Loader, optimizer: torch.optim.Optimizer) -> None:
        """What a first step leaves behind: the optimiser's state, and what stages find out on their first batch."""
        stage.module.train()
        with torch.no_grad():
            stage.losses(self._autocasted(stage.module), self._batch(loader, 2).to(self.accelerator.device), 0)
        for parameter in stage.module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()

    def _rehearse(self, stage: Stage, loader: Loader, optimizer: torch.optim.Optimizer, size: int) -> Sized:
        # in channels-last memory, and on a GPU, nothing is copied (what cuDNN takes isn't known)
        ledger = Ledger(scratch if self.on_cpu and not self.recipe.channels_last else None, self.lay)
        with ledger, ledger.watching(stage.module):
            moved = self._step(stage, loader, optimizer, size, ledger)
        return Sized(size, ledger.phases, ledger.saved, moved)

    def _step(self, stage: Stage, loader: Loader, optimizer: torch.optim.Optimizer, size: int, ledger: Ledger) -> float:
        """As the trainer's step; gradients of a micro-batch before are there where the recipe accumulates."""
        module = self._autocasted(stage.module)
        micros = 2 if self.recipe.accumulate > 1 else 1
        for number in range(micros):
            ledger.restart("forward")
            stored = self._batch(loader, size)
            batch = stored.to(self.accelerator.device)
            ledger.adopt([*stored.inputs.values(), *batch.inputs.values(), stored.label, stored.weight])
            losses = stage.losses(module, batch, 0)
            ledger.restart("backward")
            losses["loss"].backward()
            if number < micros - 1:
                del losses
        ledger.restart("step")
        optimizer.step()
        optimizer.zero_grad()
        return float(sum(x.nbytes for x in (*stored.inputs.values(), stored.label)))

    def _autocasted(self, module: nn.Module) -> Any:
        """As Accelerate's `prepare`: half precision inside where the recipe says so, float32 outside."""
        if self.recipe.precision == "no":
            return module

        def forward(*args: Any) -> Any:
            with self.accelerator.autocast():
                return torch.utils._pytree.tree_map_only(
                    Tensor, lambda x: x.float() if x.dtype in HALVES else x, module(*args)
                )

        return forward


def _shapes_agree(self: Ensemble, number: int, members: Sequence[int], inputs: Mapping[str, Tensor]) -> bool:
    """In the place of `Ensemble._check_sharing`: fake tensors have no numbers to compare."""
    training = [mask.training for mask in self.masks]
    self.masks.eval()
    try:
        few = {name: x[:8] for name, x in inputs.items()}
        with torch.no_grad():
            return self._together(number, members, few)[0][1].shape == self.teachers[number].logits(few).shape
    except Exception:  # whatever a network raises where rows and batch no longer agree
        return False
    finally:
        for mask, was in zip(self.masks, training, strict=True):
            mask.train(was)


@torch.no_grad()
def _all_of_them(self: Ensemble, inputs: Mapping[str, Tensor], which: Tensor) -> Tensor:
    """In the place of `Ensemble.chosen`: which rows a teacher gets depends on values; that all get all is the most."""
    return self({name: x.clone() for name, x in inputs.items()})[:, : which.shape[1]]


def _unchanged(self: Augmentation, inputs: Mapping[str, Tensor], *_: object) -> dict[str, Tensor]:
    """In the place of `Augmentation.__call__`, whose own cost isn't planned."""
    return dict(inputs)


def _no_salience(experiment: Experiment, teacher: Teacher, place: Feature, repeats: int = 10, *_: object) -> Tensor:
    """In the place of `salience.run`, which trains nothing and goes over the whole split: any channels will do."""
    batch = experiment.feeds.loader("train", teacher.modalities).first(2)
    return torch.zeros(salience.Salience(experiment, teacher, place, repeats)._size(batch)[1])


def rehearse(subject: Subject, on_cpu: bool) -> list[StageProfile]:
    """Profiles of every stage that the recipe's method runs, in order.

    Raises:
        MstdistillError: a recipe that a run would refuse as well.
    """
    find_method(subject.recipe.method)
    try:
        return _run(subject, on_cpu, fake=True)
    except MstdistillError:
        raise
    except Exception:  # fake tensors refuse in many ways: real ones will say whether the recipe is at fault
        return _run(subject, on_cpu, fake=False)


def _run(subject: Subject, on_cpu: bool, fake: bool) -> list[StageProfile]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        if fake:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(Answering())
            # all is on one device in one type already
            stack.enter_context(_replaced(nn.Module, to=lay_weights))
        label = subject.label if subject.label is not None else _label_shape(subject, fake)
        experiment = PlannedExperiment(subject, label, folder, fake, on_cpu)

        def build(
            place: Path, _: str, logits_of: Callable[[Batch], Tensor], loader: Loader, __: object,
            ___: torch.device, dtype: str = "float32", resident: float = RESIDENT_BYTES, *____: object,
        ) -> _PlannedTable:  # fmt: skip
            return experiment.table(place, logits_of, loader, dtype, resident)

        # the tables of a rehearsal are of nothing: neither hashed nor written
        if not on_cpu:
            stack.enter_context(_replaced(kernels_mask, _ScalarAttention=FusedAttention))
        stack.enter_context(_replaced(tables_module, build_cache=build, fingerprint=lambda *_: ""))
        stack.enter_context(_replaced(Augmentation, __call__=_unchanged))
        stack.enter_context(_replaced(Ensemble, chosen=_all_of_them))
        stack.enter_context(_replaced(salience, run=_no_salience))
        # nobody knows labels yet: none is hidden, which costs the same
        stack.enter_context(_replaced(folds, check=lambda _: None, cut=lambda run: np.zeros(len(run.splits["train"])),
                                      hiding=lambda *_: nullcontext(), teachers=lambda _: []))  # fmt: skip
        outcome = find_method(subject.recipe.method)(experiment)
        if experiment.twin is not None and outcome.finished:
            # masks are gone with the method that made them
            experiment.networks = [one for one in experiment.networks if not isinstance(one, Ensemble)]
            alone.run(experiment, experiment.placed(experiment.twin))
        return experiment.profiles


def _label_shape(subject: Subject, fake: bool) -> tuple[int, ...]:
    """(), (C,) of several classes at once, or (H, W), from the student's logits of one instance."""
    if subject.material.task.multilabel:
        return (subject.material.task.num_classes,)
    student = subject.material.twin(Screen(quiet=True))
    split = PlannedSplit(2, subject.columns, (), 2, not fake)
    view = subject.material.target
    inputs, _ = split.fetch(np.arange(2), [view])
    with torch.no_grad():
        return tuple(call(student.eval(), inputs, (view,)).shape[2:])


@contextmanager
def _replaced(module: Any, **values: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def _units(module: nn.Module) -> tuple[float, ...]:
    """Bytes that learn of each unit that FSDP2 shards; what lies in no block first."""

    def learns(parts: Iterable[nn.Module]) -> dict[int, int]:
        return _storages_of([p for part in parts for p in part.parameters() if p.requires_grad])

    named = blocks_of(module)
    blocks = [learns([part]) for part in module.modules() if type(part).__name__ in named]
    inside = {key for block in blocks for key in block}
    rest = sum(size for key, size in learns([module]).items() if key not in inside)
    return (rest, *(sum(block.values()) for block in blocks))


def _count(shape: Sequence[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _storages_of(tensors: Sequence[Tensor]) -> dict[int, int]:
    """Unique storages: their bytes."""
    return {id(x.untyped_storage()): x.untyped_storage().nbytes() for x in tensors}


def _storages(modules: Sequence[nn.Module]) -> dict[int, int]:
    return _storages_of([x for module in modules for x in (*module.parameters(), *module.buffers())])
