"""The student as a thing of its own: a folder with weights, config and card, loaded in three lines.

from mstdistill import Student
student = Student.from_pretrained("runs/av-digits-image/student")
classes = student.predict(images)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .backbones.catalogue import build
from .backbones.huggingface import HuggingFaceNet
from .data.task import Task
from .data.view import modality_of
from .errors import ConfigError
from .export.names import CALIBRATE, check_request
from .files import replace_folder, write_tensors
from .markup import plain
from .state import state_of
from .teachers.tap import call
from .weights import load_weights

if TYPE_CHECKING:
    from .export.exporting import Exported

# Where the config and the processor of a Hugging Face student lie in its folder.
TRANSFORMERS = "transformers"
# Where a card tells of the artefacts beside it.
_EXPORTED = "## Exported files"


def export_student(
    folder: Path, module: nn.Module, task: Task, target: str, maker: Mapping[str, Any] | None,
    summary: Mapping[str, Any],
) -> Path:  # fmt: skip
    """Write model.safetensors, config.json and a model card, atomically.

    Args:
        maker: the backbone's registered name and options; None for a user's own network.
        summary: of the run, for the card.
    """
    config = {
        "task": task.name,
        "modality": modality_of(target),
        "input_shape": list(task.modalities.get(target, ())),
        "num_classes": task.num_classes,
        "ignore_index": task.ignore_index,
        "class_names": list(task.class_names),
        "backbone": maker["backbone"] if maker else None,
        "options": dict(maker["options"]) if maker else {},
        **({"multilabel": True} if task.multilabel else {}),
        "hf": {"model": maker and maker["hf"], **module.describe()} if isinstance(module, HuggingFaceNet) else None,
    }
    with replace_folder(folder) as temporary:
        write_tensors(temporary / "model.safetensors", state_of(module), {"format": "pt"})
        if isinstance(module, HuggingFaceNet):
            module.save_files(temporary / TRANSFORMERS)
        (temporary / "config.json").write_text(json.dumps(config, indent=1))
        (temporary / "README.md").write_text(_card(config, summary))
    return folder


def _card(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    from .tables import summary_tables

    body, _ = summary_tables(summary)
    shape = "x".join(map(str, config["input_shape"])) or "as in training"
    use = "classes = student.predict(batch)"
    several = ", of each class a yes or no of its own; `predict` gives 0s and 1s" if config.get("multilabel") else ""
    kind = config["hf"]["ports"][0]["kind"] if config["hf"] else "array"
    if kind != "array":
        raw = {"image": "pictures", "audio": "[(samples, rate), ...]", "text": "texts"}[kind]
        use = f"classes = student.predict(student.view({raw}))"
    return (
        f"---\nlibrary_name: mstdistill\ntags: [knowledge-distillation, cross-modal]\n---\n\n"
        f"# A student that sees {plain(config['modality'])}, distilled on {plain(config['task'])}\n\n"
        f"Input: {plain(config['modality'])} [batch, {shape}]; output: logits [batch, {config['num_classes']}]"
        f"{several}.\n\n"
        '```python\nfrom mstdistill import Student\nstudent = Student.from_pretrained("this folder")\n'
        f"{use}\n```\n\n" + body.replace("# ", "## ", 1)
    )


class Student(nn.Module):
    """An exported student.

    Attributes:
        module: the network.
        config: modality, input shape, classes.
        card: its model card; none of a network that no folder held.
    """

    def __init__(self, module: nn.Module, config: Mapping[str, Any], card: str | None = None) -> None:
        super().__init__()
        self.module, self.config, self.card = module.eval(), dict(config), card

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, module: nn.Module | None = None, trust_remote_code: bool = False,
        file: str = "model.safetensors",
    ) -> Student:  # fmt: skip
        """Load an exported folder; nothing else is read, the hub included.

        Args:
            module: the network to load into; needed for a user's own, built by name otherwise.
            trust_remote_code: run code that came with a Hugging Face model.
            file: of the weights, model-fp16.safetensors for example; they are computed with in float32.

        Raises:
            ConfigError: no student there, or one whose network must be given.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError):
            raise ConfigError(f"{folder} holds no exported student; make one with: mstdistill export RUN") from None
        if module is None and config.get("hf"):
            from .backbones.pretrained import rebuild

            module = rebuild(folder / TRANSFORMERS, config["num_classes"], config["hf"], trust_remote_code)
        if module is None:
            if not config["backbone"]:
                raise ConfigError(
                    f"{folder} is a network of your own: Student.from_pretrained(folder, module=YourNet())"
                )
            module = build(config["backbone"], config["num_classes"], **config["options"])
        load_weights(module, str(folder / file), "student")
        card = folder / "README.md"
        return cls(module, config, card.read_text() if card.exists() else None)

    def forward(self, view: Tensor) -> Tensor:
        """Logits [B, C] or [B, C, H, W] of the target modality [B, ...]."""
        return call(self.module, {"view": view}, ("view",))

    def view(self, raw: Iterable[Any]) -> Tensor:
        """Raw instances as the student takes them, [B, ...]: pictures (PIL), texts, or sounds (samples [n], rate).

        Raises:
            ConfigError: it takes tensors, so there is nothing to process.
        """
        processing = self.module.processing[0] if isinstance(self.module, HuggingFaceNet) else None
        if processing is None:
            raise ConfigError(f"this student takes tensors {self.config['input_shape']} of {self.config['modality']}")
        return torch.stack([torch.from_numpy(processing(one)) for one in raw])

    @torch.no_grad()
    def predict(self, view: Tensor) -> Tensor:
        """Most probable classes [B] or [B, H, W], int64; of several classes at once 0 or 1 for each, [B, C]."""
        if self.config.get("multilabel"):
            return (self(view) > 0).to(torch.int64)
        return self(view).argmax(dim=1)

    def export(
        self,
        folder: str | Path,
        formats: Sequence[str] = ("onnx",),
        quantize: Sequence[str] = ("none",),
        *,
        train: Any = None,
        validation: Any = None,
        test: Any = None,
        label: str = "label",
        names: Sequence[str] | None = None,
        view: str | None = None,
        calibrate: int = CALIBRATE,
        rows: int | None = None,
    ) -> Exported:
        """Write a folder of artefacts, each tried by its own runtime beside this student; see docs/export.md.

        Args:
            folder: a new one; complete or not there at all.
            formats: of safetensors, onnx, torch-export, executorch.
            quantize: of none, fp16, int8-dynamic, int8-static, which each format does as far as it knows them.
            train, validation, test: data sets as `distill` takes them, or prepared splits: the first to calibrate
                int8-static on, the others to try artefacts on; without these inputs are random and accuracy unknown.
            label, names: see `distill`.
            view: what items call the student's input; None: its modality.
            calibrate: training rows that int8-static sees.
            rows: of each split that artefacts are tried on; None: all; a slow one takes what ten seconds are for.

        Raises:
            ConfigError: it can't be exported so; nothing is written.
        """
        wanted = check_request(Path(folder), formats, quantize, calibrate, rows)
        from .data.sources.python import DatasetSplit
        from .data.split import Split
        from .export.exporting import export
        from .export.intake import find_intake
        from .export.rows import SplitRows

        seen = view or self.config.get("modality") or "input"
        splits: dict[str, Split] = {}
        for name, data in (("train", train), ("validation", validation), ("test", test)):
            if data is not None:
                splits[name] = data if isinstance(data, Split) else DatasetSplit(
                    data, label, names=names, wanted=[seen], name=name, ignore=self.config.get("ignore_index"),
                    class_names=self.config.get("class_names") or (), unlabelled=True,
                    several=bool(self.config.get("multilabel")),
                )  # fmt: skip
        found = {name: SplitRows(x, seen, calibrate if name == "train" else rows) for name, x in splits.items()}
        calibration = found.pop("train", None)
        intake = find_intake(self.module, splits, seen)
        return export(Path(folder), self.module, self.config, wanted, found, calibration, intake, self._fill,
                      rows or 32)  # fmt: skip

    def _fill(self, folder: Path, table: str, config: Mapping[str, Any]) -> None:
        """Write what an exported folder holds beside its artefacts."""
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        if isinstance(self.module, HuggingFaceNet):
            self.module.save_files(folder / TRANSFORMERS)
        sees = plain(str(self.config.get("modality") or "one modality"))
        card = self.card or f"# A student that sees {sees}\n\n"
        use = ""
        if (folder / "onnx" / "run.py").exists():
            use = "`python onnx/run.py batch.npy` prints a batch's classes; it needs onnxruntime and NumPy alone.\n\n"
        (folder / "README.md").write_text(f"{card.partition(_EXPORTED)[0].rstrip()}\n\n{_EXPORTED}\n\n{use}{table}")
