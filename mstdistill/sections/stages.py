"""Settings of the three stages, and of the rounds between them."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ..strict import Settings
from .learning import OptimSettings
from .mask import MaskObjective


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
