"""Recipes: typed, validated, overridable. One truth for names, types, defaults and help.

A recipe is YAML; `load` merges a shipped recipe or a file with presets and `key=value` overrides (recipe_files.py), and
checks every key. Descriptions are shown by `mstdistill settings`, in recipes that `new` writes, and by editors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from .augment_settings import AugmentSettings
from .errors import ConfigError, nearest
from .logits_settings import check_logits
from .mask_settings import MaskObjective
from .presets import PRESETS as PRESETS
from .recipe_files import content_of
from .recipe_files import recipe_names as recipe_names
from .routing_settings import RoutingSettings as RoutingSettings
from .strict import Settings as Settings


class DataSettings(Settings):
    """Which instances."""

    later: ClassVar[tuple[str, ...]] = ("indices", "unlabelled", "labelled", "labelled_share", "missing", "multilabel",
                                        "label_columns", "sampler", "key")  # fmt: skip

    dir: str | None = Field(
        None, description="prepared folder, or hub:org/name; none: the task's own place. Task own: a folder or file "
        "that `datasets` opens, or hub:org/name[@config]"
    )  # fmt: skip
    split: Literal["protocol", "publisher"] = Field(
        "protocol", description="60/20/20 by seed group, or the publisher's"
    )
    group: int = Field(0, ge=0, description="seed group of the 60/20/20 split")
    indices: str | None = Field(
        None, description="csv file of seed groups (group_0, group_1, ...: permutations of all rows), as the paper's "
        "authors hand out; none: the protocol's own"
    )  # fmt: skip
    limit: int | None = Field(None, ge=3, description="use this many instances in all")
    workers: int = Field(0, ge=0, description="background processes for slow data; prepared data needs none")
    label: str = Field("label", description="task own: the column of the classes")
    columns: dict[str, str] | None = Field(
        None, description="task own: modality -> column; none: every usable column under its own name"
    )
    streaming: bool | Literal["auto"] = Field(
        "auto", description="task own: prepare straight from the hub, storing no raw data; auto: above 20 GB"
    )
    max_broken: float = Field(0.02, ge=0, lt=1, description="task own: share of instances that may be unreadable")
    unlabelled: Literal["leave", "learn"] = Field(
        "leave", description="training instances without a label (none, or -1): left out, or distilled on"
    )
    labelled: float | None = Field(
        None, gt=0, le=1, description="share of each class's training labels that is used, for experiments; the other "
        "instances count as unlabelled"
    )  # fmt: skip
    labelled_share: float | None = Field(
        None, gt=0, le=1, description="part of each step that labelled instances are, where some have no label; none: "
        "what chance gives"
    )  # fmt: skip

    missing: Literal["refuse", "allow"] = Field(
        "refuse", description="instances that lack a modality (none, empty, or a file that isn't there): refused, or "
        "learned from by those who can see them; the target is never missing"
    )  # fmt: skip
    multilabel: bool = Field(
        False, description="an instance may have several classes at once: the label column holds lists of classes or "
        "of 0s and 1s (task own), items hold arrays of 0s and 1s (in Python); -1 or nothing: not known"
    )  # fmt: skip
    label_columns: list[str] | None = Field(
        None, description="task own, multi-label: columns of 0s and 1s, a class each, in place of data.label"
    )
    key: str | None = Field(
        None, description="task own and data sets in Python: the column that names instances (a file, an id), by which "
        "logits of teachers are found"
    )  # fmt: skip
    sampler: Literal["shuffle", "balanced"] = Field(
        "shuffle", description="balanced: training sees every class equally often, rare ones' instances more often"
    )

    @property
    def several(self) -> bool:
        """Whether an instance may have several classes at once."""
        return self.multilabel or self.label_columns is not None

    @model_validator(mode="after")
    def _one_class(self) -> DataSettings:
        if self.several and self.sampler == "balanced":
            raise ValueError("sampler: balanced goes by one class an instance, and here one has several; take "
                             "task_loss.class_weights=balanced")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _one_cut(self) -> DataSettings:
        if self.indices is not None and self.split == "publisher":
            raise ValueError("indices cuts by the file's groups, split: publisher by the publisher's parts; give one")
        return self


class ModelSettings(Settings):
    """A network: a registered backbone by its name, or any Hugging Face model by hub id or folder."""

    backbone: str | None = Field(None, description="registered name (see: mstdistill tasks)")
    hf: str | None = Field(None, description="Hugging Face model: hub id or local folder")
    options: dict[str, Any] = Field(
        default_factory=dict, description="arguments of the backbone's constructor; with hf: changes of its config"
    )
    weights: str | None = Field(None, description="ready-trained weights: .safetensors, or a plain .pth state dict")
    processor: str | None = Field(None, description="hf: hub id or folder of its processor; none: the model's own")
    head: Literal["auto", "classification", "pooled", "two-tower"] = Field(
        "auto", description="hf: from features to classes; auto: by what the model is"
    )
    pretrained: bool = Field(True, description="hf: false: the architecture alone, with random weights")
    revision: str | None = Field(None, description="hf: branch, tag or commit on the hub")
    trust_remote_code: bool = Field(False, description="hf: run the code that comes with the model")
    max_length: int | None = Field(None, ge=1, description="hf: tokens a text is padded or cut to; none: at most 128")
    max_seconds: float = Field(
        10.0, gt=0, description="hf: length that sounds are padded or cut to, where the processor has none of its own"
    )
    gradient_checkpointing: bool = Field(False, description="hf: less memory in training, a third more time")
    compile: bool | Literal["auto"] = Field(
        False, description="torch.compile for plain forwards; tapped ones stay as they are. auto: where a few timed "
        "steps say so, which choose the memory format and a CPU's threads too; the run remembers it"
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_source(self) -> ModelSettings:
        if getattr(self, "logits", None) is not None:
            return self
        if (self.backbone is None) == (self.hf is None):
            raise ValueError("give either backbone (a registered name) or hf (a hub id or folder)")
        if self.hf is None:
            for key in ("processor", "revision", "trust_remote_code", "max_length", "gradient_checkpointing"):
                if getattr(self, key) not in (None, False):
                    raise ValueError(f"{key} goes with hf, not with backbone")
        return self


class TeacherSettings(ModelSettings):
    """A teacher: what it sees, where its masks sit."""

    later: ClassVar[tuple[str, ...]] = ("logits", "key", "missing", "modality_dropout")
    name: str = Field(description="as tables and baseline.teacher call it")
    modalities: list[str] = Field(default_factory=list, description="what it sees, in the order of its inputs")
    logits: str | None = Field(
        None, description="its logits alone, no network: a file by order (.safetensors, .npy) or by key (.npz, table), "
        "or a modality that holds them"
    )  # fmt: skip
    key: str = Field("key", description="of logits by key: the file's column of keys, which are those of data.key")
    taps: list[str] = Field(
        default_factory=list, description="submodules whose features get masks, one specialised teacher each"
    )
    frozen: bool = Field(False, description="ready-trained: stage 1 uses it as a reference and leaves it as it is")
    missing: Literal["need", "zero"] = Field(
        "need", description="an instance that lacks one of its modalities: it can't see it, or zeros stand there"
    )
    modality_dropout: float = Field(
        0.0, ge=0, lt=1, description="missing zero: chance that a modality is hidden from it in training, never all"
    )

    @model_validator(mode="after")
    def _drops_what_it_can_miss(self) -> TeacherSettings:
        if self.modality_dropout and (self.missing != "zero" or len(self.modalities) < 2):
            raise ValueError("modality_dropout is for teachers of several modalities with missing: zero")
        return self

    @model_validator(mode="after")
    def _network_or_logits(self) -> TeacherSettings:
        check_logits(self)
        return self


class Pairing(Settings):
    """The networks for one target modality."""

    student: ModelSettings = Field(description="the network that is trained to be used; it sees the target alone")
    teachers: list[TeacherSettings] = Field(min_length=1, description="the networks that it learns from")


class MaskSettings(Settings):
    """The mask modules."""

    enabled: bool = Field(True, description="false: the unmasked teachers form the mixture")
    heads: int = Field(3, ge=1, description="of the mask's attention")
    hidden_dim_factor: int = Field(2, ge=1, description="hidden width = d // (factor * heads) * heads")
    hidden: int | None = Field(None, ge=1, description="hidden width, instead of the factor")
    max_parameters: int | None = Field(None, ge=1, description="budget a mask: the hidden width shrinks to fit")
    mode: Literal["independent", "cumulative"] = Field(
        "independent", description="masks in stage 3: each alone, or a teacher's stacked as in the released code"
    )


class OptimSettings(Settings):
    """How a stage learns."""

    epochs: int = Field(1, ge=0, description="passes over the training data")
    lr: float = Field(1e-4, gt=0, description="learning rate, the largest of the schedule")
    batch_size: int | None = Field(None, ge=1, description="per process; none: the recipe's batch_size")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="sgd has a momentum of 0.9")
    weight_decay: float = Field(0.0, ge=0, description="the optimiser's own")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate; cosine: down to zero over the stage"
    )
    warmup_steps: int = Field(0, ge=0, description="optimiser steps in which the rate rises from zero")
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm")


class Decay(Settings):
    """A loss weight times `factor` after epochs 0, every, 2*every, ... (quirk 5)."""

    factor: float = Field(1.0, gt=0, description="what the weight is multiplied by; 1: it stays")
    every: int = Field(1, ge=1, description="epochs between two such steps")
    first: bool = Field(True, description="also after the very first epoch, as the released code does")


class LossWeights(Settings):
    """Weights of the stage-3 objective and their decays."""

    task: float = Field(1.0, ge=0, description="of the labels")
    kd: float = Field(1.0, ge=0, description="of the distillation from the mixture of teachers")
    balance: float = Field(1.0, ge=0, description="of the router's load balance")
    router: float = Field(1.0, ge=0, description="of the router's task signal")
    kd_decay: Decay = Decay(factor=0.5, every=30)
    balance_decay: Decay = Decay(factor=0.9, every=10)


class CacheSettings(Settings):
    """The cache of teacher logits."""

    mode: Literal["auto", "always", "never"] = Field(
        "auto", description="keep the logits of teachers that no longer learn; auto: where they fit budget_gb"
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32", "float64"] = Field(
        "auto", description="of the logits on disk; auto: their own, or float16 where that alone fits"
    )
    budget_gb: float = Field(20.0, gt=0, description="largest cache on disk; beyond it teachers run live")
    resident_gb: float = Field(8.0, ge=0, description="a cache up to this size is held in a GPU's memory")


class TaskLossSettings(Settings):
    """The task's own loss, in every stage and method."""

    class_weights: Literal["none", "balanced"] = Field(
        "none", description="balanced: every class counts the same, however few instances it has; multi-label: its yes "
        "and its no do"
    )  # fmt: skip
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="part of each label that goes to all classes evenly; not for multi-label tasks"
    )


class CotrainSettings(OptimSettings):
    """Stage 1."""

    later: ClassVar[tuple[str, ...]] = ("agreement",)
    agreement: float = Field(
        1.0, ge=0, description="weight of the networks' pull on each other; 0: each learns from its labels alone"
    )
    select: Literal["last", "best"] = Field("last", description="which epoch's weights go on")


class RoundsSettings(OptimSettings):
    """Self-training between stages 1 and 2."""

    count: int = Field(0, ge=0, description="rounds in which all networks learn from what they say together; 0: none")
    epochs: int | None = Field(None, ge=0, description="of a round; none: as many as cotrain.epochs")  # type: ignore[assignment]
    lr: float | None = Field(None, gt=0, description="learning rate; none: the co-training's")  # type: ignore[assignment]
    anew: bool = Field(False, description="networks begin each round with their first weights, not with the last ones")
    rule: Literal["entropy", "margin", "agreement", "product"] = Field(
        "product", description="how what they say is put together, as routing.rule; each calibrated on validation"
    )
    sharpness: float = Field(4.0, ge=0, description="of rules entropy, margin and agreement; 0 averages")
    temperature: float | None = Field(None, gt=0, description="of these soft labels; none: the recipe's")
    weight: float = Field(1.0, ge=0, description="of the soft labels beside the labels")
    select: Literal["last", "best"] = Field("last", description="which epoch's weights go on")


class SpecialiseSettings(MaskObjective, OptimSettings):
    """Stage 2."""


class DistillSettings(OptimSettings):
    """Stage 3."""

    epochs: int = Field(100, ge=0, description="passes over the training data")
    weights: LossWeights = LossWeights()
    cache: CacheSettings = CacheSettings()


class AloneSettings(Settings):
    """The comparison: the student without teachers, with as many epochs in all and the same selection."""

    enabled: bool = Field(True, description="train it too, for the final table")
    epochs: int | None = Field(None, ge=1, description="of the student alone; none: as many as its stages have in all")


class StepDecay(Settings):
    """A weight times `factor` after every `every` epochs."""

    factor: float = Field(1.0, gt=0, description="what the weight is multiplied by; 1: it stays")
    every: int = Field(1, ge=1, description="epochs between two such steps")


class BaselineSettings(Settings):
    """The comparison's methods (docs/baselines.md); the student's epochs, rate and batch are those of `distill`."""

    teacher: str = Field("multimodal", description="who teaches: multimodal, crossmodal or a teacher's name")
    teacher_epochs: int | None = Field(None, ge=0, description="of a teacher alone; none: distill.epochs")
    teacher_lr: float | None = Field(None, gt=0, description="of a teacher alone; none: distill.lr")
    alpha: float = Field(0.5, ge=0, le=1, description="the distillation's part of the loss; the task has the rest")
    alpha_decay: StepDecay = StepDecay(factor=0.5, every=30)
    student_taps: list[str] = Field(default_factory=list, description="features it learns by; none: found by a dry run")
    teacher_taps: list[str] = Field(default_factory=list, description="features it teaches by; none: found likewise")
    options: dict[str, Any] = Field(default_factory=dict, description="a method's own numbers")


class RunSettings(Settings):
    """Everything that may change between two starts of one run."""

    trackers: list[str] = Field(
        default_factory=lambda: ["tensorboard"], description="where figures go (Accelerate's names); []: nowhere"
    )
    checkpoint_seconds: float = Field(20.0, ge=0, description="least time between checkpoints, taken at epochs' ends")
    checkpoint_steps: int | None = Field(
        None, ge=1, description="a checkpoint within an epoch too, every so many steps"
    )
    keep_checkpoints: int = Field(2, ge=1, description="of a stage; older ones are deleted")
    resident_gb: float = Field(4.0, ge=0, description="training data up to this size stay on the GPU; 0: never")
    cuda_graph: bool = Field(False, description="record stage 3's step once and replay it (one GPU, adam or adamw)")
    timeout_seconds: float = Field(
        1800.0, gt=0, description="so long a process waits for the others, then they are lost"
    )
    log_every: int = Field(50, ge=1, description="steps between looks at the running losses")
    page: bool = Field(
        True, description="leave report.html in the run's folder; it is renewed while the run goes on, in at most 1 % "
        "of its time"
    )  # fmt: skip
    stop_after: Literal["cotrain", "specialise", "distill"] | None = Field(
        None, description="end the run after this stage; the same command without it goes on"
    )


# What may differ where some training instances have no label: neither data nor networks.
PARTLY = ("temperature", "mask", "routing", "cotrain", "rounds", "specialise", "distill")


class Recipe(Settings):
    """A whole experiment."""

    later: ClassVar[tuple[str, ...]] = ("augment", "rounds", "partly", "task_loss")
    task: str = Field(description="whose data (see: mstdistill tasks); own: a user's own")
    target: str = Field(description="the modality that the student sees")
    method: str = Field("mst", description="mst: the three stages; or one of the comparison (docs/baselines.md)")
    seed: int = Field(0, ge=0, description="of the first weights, the order of the data and all else that is drawn")
    precision: Literal["no", "bf16", "fp16"] = Field("no", description="half precision in training; no: float32")
    batch_size: int = Field(64, ge=1, description="per process and micro-batch")
    accumulate: int = Field(1, ge=1, description="micro-batches per optimiser step")
    temperature: float = Field(4.0, gt=0, description="that softens student's and teachers' logits in distillation")
    tf32: bool = Field(True, description="matrix products of float32 in TF32 on a GPU; false: strict float32")
    channels_last: bool = Field(False, description="convolutions in channels-last memory: the same sums, often faster")
    validation_mean: Literal["instances", "batches"] = Field(
        "instances", description="batches: the mean of the batch means, as the released code selects (quirk 7)"
    )
    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    models: dict[str, Pairing] = Field(default_factory=dict, description="target -> the networks that train for it")
    task_loss: TaskLossSettings = TaskLossSettings()
    mask: MaskSettings = MaskSettings()
    routing: RoutingSettings = RoutingSettings()
    cotrain: CotrainSettings = CotrainSettings()
    rounds: RoundsSettings = RoundsSettings()
    specialise: SpecialiseSettings = SpecialiseSettings()
    distill: DistillSettings = DistillSettings()
    alone: AloneSettings = AloneSettings()
    baseline: BaselineSettings = BaselineSettings()
    partly: dict[str, Any] = Field(
        default_factory=dict, description="settings in the others' place where some training instances have no label: "
        + ", ".join(PARTLY)
    )  # fmt: skip
    run: RunSettings = RunSettings()

    @field_validator("precision", mode="before")
    @classmethod
    def _a_word(cls, value: Any) -> Any:
        return "no" if value is False else value  # as YAML reads a bare no

    @model_validator(mode="after")
    def _one_hot(self) -> Recipe:
        if self.data.several and self.task_loss.label_smoothing:
            raise ValueError("task_loss.label_smoothing spreads one true class over the others, and a multi-label "
                             "instance has several; leave it out")  # fmt: skip
        return self

    @property
    def pairing(self) -> Pairing:
        """The networks for this recipe's target.

        Raises:
            ConfigError: the recipe has none for it.
        """
        if self.target not in self.models:
            raise ConfigError(
                f"target {self.target!r}: the recipe has no models for it; {nearest(self.target, self.models)}"
            )
        return self.models[self.target]

    @property
    def each_round(self) -> RoundsSettings:
        """The rounds, with what they take from the co-training."""
        own, first = self.rounds, self.cotrain
        epochs, lr = own.epochs if own.epochs is not None else first.epochs, own.lr or first.lr
        return own.model_copy(update={"epochs": epochs, "lr": lr})

    @property
    def student_epochs(self) -> int:
        """Of the student in all stages of the method."""
        return self.cotrain.epochs + self.rounds.count * (self.each_round.epochs or 0) + self.distill.epochs

    def for_partly_labelled(self) -> Recipe:
        """With the settings of `partly` in the others' place."""
        content = self.model_dump()
        content.pop("partly", None)
        return Recipe.model_validate(_laid_over(content, self.partly))

    @model_validator(mode="after")
    def _can_be_laid_over(self) -> Recipe:
        if wrong := [key for key in self.partly if key not in PARTLY]:
            raise ValueError(f"partly.{wrong[0]}: settings of partly labelled data are of {', '.join(PARTLY)}")
        if self.partly:
            self.for_partly_labelled()
        return self

    def binding(self) -> dict[str, Any]:
        """What a run folder is bound to: everything that changes its numbers."""
        content = self.model_dump(exclude={"run": True, "models": True, "data": {"key"}})
        content["models"] = {self.target: self.pairing.model_dump()} if self.models else {}
        return content


def load(source: str, overrides: Sequence[str] = (), presets: Sequence[str] = ()) -> Recipe:
    """A recipe from a shipped name or a YAML file, with presets and overrides on top.

    Args:
        source: a name from `recipe_names()` or a path.
        overrides: "key=value" with dots for nesting; values are YAML.

    Raises:
        ConfigError: unknown recipe, preset or key, or a value of the wrong kind.
    """
    return parse(content_of(source, overrides, presets), source)


def parse(content: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Validate a recipe's content; see `load`."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _laid_over(content: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others on top."""
    out = dict(content)
    for key, value in change.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _laid_over(out[key], value) if both else value
    return out


def _explain(error: ValidationError) -> str:
    """The first mistake, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        parent = _settings_at(first["loc"][:-1])
        return f"unknown key {where!r}; {nearest(str(first['loc'][-1]), parent.model_fields)}"
    if first["type"] == "missing":
        return f"key {where!r} is missing"
    if first["type"] == "value_error":
        return f"{where}: {first['ctx']['error']}"
    return f"{where}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _settings_at(loc: Sequence[int | str]) -> type[Settings]:
    current: Any = Recipe
    for part in loc:
        if isinstance(current, type) and issubclass(current, Settings):
            current = current.model_fields[str(part)].annotation
        else:  # a dict or list of settings
            current = current.__args__[-1]
    return current if isinstance(current, type) and issubclass(current, Settings) else Recipe
