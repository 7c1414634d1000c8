"""Settings of the networks."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ..strict import Settings
from .logits import check_logits


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
