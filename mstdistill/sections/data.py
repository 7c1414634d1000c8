"""Settings of the data."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ..strict import Settings


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
