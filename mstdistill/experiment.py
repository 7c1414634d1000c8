"""An experiment: data, networks, settings and a folder, and what every stage asks of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import ranks
from .augmenting import plan_augmentation, teaching
from .binding import bind
from .calibration import temperatures
from .config import OptimSettings, Recipe
from .data.augment.plan import Augmentation
from .data.feeding.batch import Batch
from .data.feeding.loader import Loader
from .data.labelled import labels_of, partly_labelled
from .data.split import Split
from .data.task import Task
from .data.view import modality_of
from .engine.batch_norm import take_any_batch, take_back
from .engine.checkpoint import CheckpointStore
from .engine.kept_memory import give_back
from .engine.loop import Fit, Stage, Trainer
from .engine.seeding import initialising, named_seed
from .errors import ConfigError, first_line
from .evaluation import Evaluated, evaluate
from .feeds import Feeds
from .files import write_text
from .objective import Objective, plan_objective
from .pace import Paces, Runner, lay, settled
from .sight import LEFT_OUT, complete, sight
from .stage_results import read_result, write_result
from .teachers.ensemble import Ensemble
from .teachers.tap import Teacher, call
from .trials import of_experiment, of_network
from .trials.of_network import Network

M = TypeVar("M", bound=nn.Module)

# Above this many parameters a mask is worth a warning: with Adam it takes 16 bytes a parameter.
LARGE_MASK = 100_000_000


class Experiment:
    """Everything a method works on.

    Args:
        recipe: settings; its `target` is the student's modality.
        task: classes and labels.
        splits: "train", "validation" and perhaps "test".
        student: from the target modality to logits.
        teachers: see `Teacher`.
        folder: of the run; results, checkpoints, caches.
        trainer: the engine.
        target: the student's view; None: the recipe's target as it is.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        splits: Mapping[str, Split],
        student: nn.Module,
        teachers: Sequence[Teacher],
        folder: Path,
        trainer: Trainer,
        target: str | None = None,
    ) -> None:
        self.recipe, self.task, self.splits = recipe, task, dict(splits)
        self.student, self.teachers, self.target = student, list(teachers), target or recipe.target
        self.folder, self.trainer = folder, trainer
        self.accelerator, self.screen = trainer.accelerator, trainer.screen
        self.finished: Callable[[str], None] | None = None  # told of each stage whose result was just written
        self._paces: Paces | None = None
        self._threads = torch.get_num_threads()
        self._changed: list[nn.Module] = []  # whose batch norms take any batch meanwhile
        self._learns = {name for name, p in student.named_parameters() if p.requires_grad}
        names = [teacher.name for teacher in self.teachers]
        if not names:
            raise ConfigError("no teachers: give at least one that sees another modality than the student")
        for name in names:
            if names.count(name) > 1 or name == "student":
                raise ConfigError(f"teacher name {name!r}: each teacher needs a name of its own, other than 'student'")
        of_network.check_apart(self.tried)
        # instances of which the student sees nothing
        self.left_out = complete(self.splits, self.teachers, self.target, task.name, self.screen.say)
        self._look_for_labels()
        if recipe.partly and self.partly_labelled:
            self.recipe = recipe.for_partly_labelled()
            self.screen.say(f"partly labelled: settings of {', '.join(recipe.partly)} as the recipe has them for that")
        self.feeds = Feeds(self.recipe, task, self.splits, self.accelerator.device)
        try:
            self._place()
            self.dense = of_experiment.dry_run(self)
            self.objective = self._plan_objective()
            self.feeds.augmentation = self._plan_augmentation()
            self.mask_plans = of_experiment.plan_masks(self)
            self._try()
            self.fingerprint = self._bind()
            if self.left_out and ranks.rank() == 0:
                write_text(self.folder / LEFT_OUT, json.dumps(self.left_out, indent=1))
            self._compile()
        except BaseException:
            self.released()
            raise

    def _look_for_labels(self) -> None:
        """Training instances without a label are known before the first step; their number is said."""
        data = self.recipe.data
        if data.labelled is None and data.unlabelled == "leave":
            return
        seed = named_seed(self.recipe.seed, "labelled") % 2**31
        self.splits["train"], line = partly_labelled(
            self.splits["train"], data.labelled, seed, self.task.num_classes, f"{self.task.name} train"
        )
        if line:
            self.screen.say(line)

    def _plan_objective(self) -> Objective:
        """See `plan_objective`."""
        found, self.feeds.classes = plan_objective(
            self.recipe.task_loss, self.recipe.data.sampler, self.task, self.dense,
            lambda: labels_of(self.splits["train"]), self.screen.say,
        )  # fmt: skip
        return found.moved(self.accelerator.device)

    @property
    def partly_labelled(self) -> bool:
        """Whether some training instances have no label."""
        return getattr(self.splits["train"], "labelled", None) is not None

    @property
    def tried(self) -> list[Network]:
        """The student, then the teachers."""
        return [Network.student(self.student, self.target),
                *(Network.teacher(t.name, t.module, t.modalities) for t in self.teachers)]  # fmt: skip

    def _place(self) -> None:
        for module in [self.student, *(teacher.module for teacher in self.teachers)]:
            self.placed(module)

    def placed(self, module: M) -> M:
        """A module on the run's device, in the memory format that the recipe asks for; its batch norms take any batch
        from now on (`released` undoes that)."""
        module.to(self.accelerator.device)
        if self.recipe.channels_last:
            lay(module, channels_last=True)
        self._changed += take_any_batch(module)
        return module

    def released(self) -> None:
        """Give the networks back as they came, trained, and the process its threads."""
        if self._paces is not None:
            torch.set_num_threads(self._threads)
        take_back(self._changed)
        self._changed.clear()

    def compiled(self, module: nn.Module, name: str = "student") -> nn.Module:
        """The module itself; where its recipe wants that, its plain forwards are compiled from now on, or it runs as
        was found best for the network of this name. Names and parameters stay; a copy starts uncompiled."""
        wanted = getattr(module, "wants_compile", False)
        if wanted == "auto" and self._paces is not None:
            self._paces.take(module, name)
        elif wanted:
            module.compile()
        return module

    def _compile(self) -> None:
        """Compile what is to be compiled, and try it; see `pace` for what decides that itself."""
        networks = [
            ("student", self.student, (self.target,)),
            *((t.name, t.module, t.modalities) for t in self.teachers),
        ]
        runners = [Runner(name, module, self.first_batch(view).inputs, view) for name, module, view in networks
                   if getattr(module, "wants_compile", False) == "auto"]  # fmt: skip
        if runners:
            self._paces = settled(self.folder, runners, self.recipe.channels_last, self.accelerator.autocast,
                                  self.screen.say)  # fmt: skip
        for name, module, view in networks:
            if getattr(self.compiled(module, name), "wants_compile", False) is True:
                try:
                    with torch.no_grad():
                        call(module, self.first_batch(view).inputs, view)
                except Exception as error:  # compilers fail in many ways
                    raise ConfigError(f"compile: true doesn't work here ({first_line(error)}); leave it out") from None

    def first_batch(self, view: Sequence[str], rows: int | None = None) -> Batch:
        """See `Feeds.first`."""
        return self.feeds.first(view, rows)

    def _try(self) -> None:
        """See `of_experiment.every_network`."""
        of_experiment.every_network(self)

    def try_training(self, teacher: Teacher | None, stages: Sequence[OptimSettings]) -> None:
        """Try the student (None) or a teacher on the shortest batch of these stages; a teacher in which nothing can
        learn is frozen from here on.

        Raises:
            ConfigError: it can't train on such a batch, or nothing in the student learns.
        """
        of_experiment.training(self, teacher, stages)

    def _plan_augmentation(self) -> Augmentation | None:
        """See `augmenting`."""
        views = sorted({view for one in self.tried for view in one.view})
        seeing = [teacher.name for teacher in self.teachers if self.target in teacher.modalities]
        return plan_augmentation(
            self.recipe, self.task, seeing, lambda: self.first_batch(views, 2).inputs, self.dense, self.screen.say
        )

    def teaching(self, modalities: Sequence[str]) -> str:
        """How `augment.teachers` shows training instances to frozen networks that see these modalities."""
        return teaching(self.recipe) if self.target in modalities else "clean"

    def _bind(self) -> str:
        """Tie the folder to this experiment; returns its fingerprint.

        Raises:
            CheckpointError: the folder holds a run of other settings or data.
        """
        shapes = {
            name: [[key, list(p.shape)] for key, p in module.named_parameters()]
            for name, module in [("student", self.student), *((t.name, t.module) for t in self.teachers)]
        }
        lenient = {t.name: [t.missing, t.modality_dropout] for t in self.teachers if t.missing != "need"}
        content = {
            "settings": self.recipe.binding(),
            **({"missing": lenient} if lenient else {}),
            "data": {name: split.fingerprint for name, split in self.splits.items()},
            "networks": f"{named_seed(0, shapes):016x}",
            "processes": ranks.world_size(),
        }
        bound = bind(self.folder, content, self.screen.say)
        return f"{named_seed(0, json.dumps(bound, sort_keys=True)):016x}"

    def validation(self, module: nn.Module, view: Sequence[str]) -> dict[str, float]:
        """A network's figures for an epoch's record; the epoch with the lowest selection is the one to keep."""
        result = self.evaluate(module, view, "validation")
        return {"validation/loss": result.loss, f"validation/{result.measure}": result.score,
                "selection": result.selection}  # fmt: skip

    def evaluate(self, module: nn.Module, view: Sequence[str], split: str) -> Evaluated:
        """A network's figures on a split; its training mode is left as found."""
        was_training = module.training
        module.eval()
        try:
            return evaluate(
                lambda batch: call(module, batch.inputs, view),
                self.feeds.loader(split, view),
                self.accelerator.device,
                mean=self.recipe.validation_mean,
                autocast=self.accelerator.autocast,
                sees=sight(self.teachers, module, view),
            )
        finally:
            module.train(was_training)

    def temperatures(
        self, logits: Callable[[Batch], Tensor], modalities: Sequence[str], names: Sequence[str],
        seen: Callable[[Batch], Tensor | None] = lambda batch: None,
    ) -> list[float]:  # fmt: skip
        """That calibrate networks on the validation data, see `calibration`; of dense tasks 1, whose pixels would each
        count by themselves.

        Args:
            logits: from a batch on the device, with these modalities, to [B, M, C].
            seen: from a batch to which networks see an instance [B, M]; None: all.
        """
        if self.dense:
            return [1.0] * len(names)
        found = temperatures(logits, self.feeds.loader("validation", modalities), self.accelerator.device,
                             self.accelerator.autocast, seen)  # fmt: skip
        shown = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, found, strict=True))
        self.screen.say(f"temperatures by validation: {shown}")
        return found

    def build_ensemble(self, mask_mode: str) -> Ensemble:
        """The specialised teachers with newly initialised masks, on the device."""
        masks = []
        for teacher, plans in zip(self.teachers, self.mask_plans, strict=True):
            own = []
            for plan in plans:
                with initialising(self.recipe.seed, "mask", teacher.name, plan.tap):
                    mask = plan.build()
                if any(p.dtype == torch.float64 for p in teacher.module.parameters()):
                    mask.double()
                own.append(mask)
            masks.append(own)
        return Ensemble(self.teachers, masks, mask_mode).place(self.accelerator.device)

    def thaw_student(self) -> None:
        """Let the student learn again what it could learn at the start."""
        for name, parameter in self.student.named_parameters():
            parameter.requires_grad_(name in self._learns)

    def train(
        self, stage: Stage, loader: Loader, settings: OptimSettings, facts: Mapping[str, Any] | None = None
    ) -> Fit:
        """Run a stage and keep its result; where the result is there already, give that."""
        found = self.result(stage.name)
        if found is not None:
            return found
        started = time.monotonic()
        checkpoints = CheckpointStore(
            self.folder / stage.name / "checkpoints",
            self.fingerprint,
            self.recipe.run.keep_checkpoints,
            self.screen.say,
        )
        fit = self.trainer.fit(stage, loader, settings, checkpoints)
        if ranks.rank() == 0:
            facts = {**(facts or {}), "seconds": round(time.monotonic() - started, 3)}
            write_result(self.folder / stage.name, fit, {"fingerprint": self.fingerprint, **facts})
            if self.finished is not None:
                self.finished(stage.name)
        ranks.wait()
        checkpoints.clear()
        give_back()
        return fit

    def result(self, name: str) -> Fit | None:
        """A finished stage's result, if it is there."""
        return read_result(self.folder / name, self.screen.say)

    def judges(self, view: Sequence[str], split: str) -> bool:
        """Whether a split has what a network sees; logits that were given may be of the training data alone."""
        return not set(view) & getattr(self.splits[split], "lacks", frozenset())

    def judge_teachers(self) -> dict[str, Evaluated]:
        """Show the teachers' validation scores; warn of one that is near chance."""
        scores = {}
        for teacher in self.teachers:
            if not self.judges(teacher.modalities, "validation"):
                self.screen.say(f"teacher {teacher.name}: logits of the training data alone, judged by nothing")
                continue
            result = self.evaluate(teacher.module, teacher.modalities, "validation")
            scores[teacher.name] = result
            self.screen.say(
                f"teacher {teacher.name} ({', '.join(map(modality_of, teacher.modalities))}): validation "
                f"{result.titled}, loss {result.loss:.3f}"
            )
            if result.near_chance:
                self.screen.say(
                    f"warning: teacher {teacher.name} is near chance ({result.near_chance}): it has nothing "
                    f"to teach yet; raise cotrain.epochs (now {self.recipe.cotrain.epochs}) or cotrain.lr, or give "
                    "ready weights with its `weights`"
                )
        return scores
