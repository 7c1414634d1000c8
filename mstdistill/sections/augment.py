"""What a recipe says of augmentation; `data/augment/` does it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ..strict import Settings


class Change(Settings):
    """One change of a training instance, drawn anew for each instance and epoch; an entry has one key."""

    crop: int | None = Field(
        None, ge=1, description="pictures: so many zeros around them, then a place of the old size"
    )
    flip: float | None = Field(None, gt=0, le=1, description="pictures: mirrored left to right, by this chance")
    turn: float | None = Field(None, gt=0, le=180, description="pictures: turned by so many degrees at most")
    erase: float | None = Field(
        None, gt=0, le=1, description="pictures: a rectangle of 2 to 33 % of them becomes 0, by this chance"
    )
    mask_frequency: int | None = Field(
        None, ge=1, description="spectrograms: a band of so many bins at most becomes 0 (SpecAugment)"
    )
    mask_time: int | None = Field(
        None, ge=1, description="spectrograms: a stretch of so many frames at most becomes 0 (SpecAugment)"
    )
    shift: float | None = Field(
        None, gt=0, le=1, description="sounds: moved in time by this share of their length at most; zeros come in"
    )
    noise: float | None = Field(
        None, gt=0, description="pictures, sounds, arrays: normal noise of this standard deviation, in the data's units"
    )
    word_dropout: float | None = Field(
        None, gt=0, lt=1, description="texts: this share of the words isn't seen; the first one stays"
    )

    later: ClassVar[tuple[str, ...]] = (
        "crop", "flip", "turn", "erase", "mask_frequency", "mask_time", "shift", "noise", "word_dropout",
    )  # fmt: skip

    @property
    def name(self) -> str:
        """Which change it is."""
        return next(name for name in self.later if getattr(self, name) is not None)

    @property
    def amount(self) -> float:
        """Its number."""
        return float(getattr(self, self.name))

    @model_validator(mode="after")
    def _one_key(self) -> Change:
        given = [name for name in self.later if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"an entry is one change, as in [{{crop: 4}}, {{flip: 0.5}}]; this one has "
                             f"{', '.join(given) or 'none'}")  # fmt: skip
        return self


class AugmentSettings(Settings):
    """Changes of training instances, drawn from (seed, epoch, instance) alone; evaluation sees none."""

    modalities: dict[str, list[Change]] = Field(
        default_factory=dict, description="modality -> its changes, in the order in which they are made"
    )
    mixup: float | None = Field(
        None, gt=0, description="each instance is mixed with another, labels too: alpha of the Beta(alpha, alpha) of "
        "its own part; none: no mixture"
    )  # fmt: skip
    teachers: Literal["clean", "same", "views"] = Field(
        "clean",
        description="of frozen networks that see the student's modality: their logits are of the data as they are "
        "(cached), of the student's very view (live), or of `views` cached views that the student sees in turn",
    )
    views: int = Field(4, ge=1, description="of teachers: views: how many are cached")

    @property
    def wanted(self) -> bool:
        """Whether anything is changed."""
        return any(self.modalities.values()) or self.mixup is not None

    @model_validator(mode="after")
    def _one_view_or_mixture(self) -> AugmentSettings:
        if self.mixup is not None and self.teachers == "views":
            raise ValueError("mixup makes a new view in each epoch, which no cache holds; teachers: clean or same")
        return self
