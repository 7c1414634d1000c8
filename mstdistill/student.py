"""The student as a thing of its own: a folder with weights, config and card, loaded in three lines.

from mstdistill import Student
student = Student.from_pretrained("runs/av-digits-image/student")  # or "org/name" on the Hugging Face Hub
classes = student.predict(images)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import repository
from .backbones.catalogue import build
from .backbones.huggingface import HuggingFaceNet
from .backbones.pretrained import OURS, rebuild
from .backbones.saved import TRANSFORMERS, WEIGHTS, form_of, home_of, load_network, save_network
from .card import make_card, published
from .data.task import Task
from .data.view import modality_of
from .errors import ConfigError
from .export.names import CALIBRATE, check_request
from .files import replace_folder, write_tensors
from .state import state_of
from .teachers.tap import call
from .weights import load_weights

if TYPE_CHECKING:
    from .export.exporting import Exported

# Where a card tells of the artefacts beside it.
_EXPORTED = "## Exported files"


def export_student(
    folder: Path, module: nn.Module, task: Task, target: str, maker: Mapping[str, Any] | None,
    summary: Mapping[str, Any], data: str | None = None,
) -> Path:  # fmt: skip
    """Write weights, config and a model card, atomically; a Hugging Face student as transformers loads it, too.

    Args:
        maker: the backbone's registered name and options; None for a user's own network.
        summary: of the run, for the card.
        data: where the run's data lie, for the card.
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
        "hf": None,
    }
    if isinstance(module, HuggingFaceNet):
        from_scratch = {"pretrained": False} if maker and not maker.get("pretrained", True) else {}
        config["hf"] = {"model": maker and maker["hf"], **from_scratch, **module.describe(), "saved": form_of(module)}
    with replace_folder(folder) as temporary:
        _write_network(temporary, module, config)
        (temporary / "README.md").write_text(make_card(config, summary, data))
    return folder


def _write_network(folder: Path, module: nn.Module, config: Mapping[str, Any]) -> None:
    """Weights and config.json."""
    facts = dict(config)
    if not isinstance(module, HuggingFaceNet):
        write_tensors(folder / WEIGHTS, state_of(module), {"format": "pt"})
    else:
        form = save_network(module, folder)
        facts["hf"] = {"model": None, **module.describe(), **(facts.get("hf") or {}), "saved": form}
        if form == "root":
            facts = _among_theirs(json.loads((folder / "config.json").read_text()), facts)
    (folder / "config.json").write_text(json.dumps(facts, indent=1))


def _among_theirs(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """A config of transformers that knows the classes' names, with the student's under a key of its own."""
    names = ours.get("class_names") or ()
    if len(names) == ours.get("num_classes"):
        theirs["id2label"] = {str(number): str(name) for number, name in enumerate(names)}
        theirs["label2id"] = {str(name): number for number, name in enumerate(names)}
    if ours.get("multilabel"):
        theirs["problem_type"] = "multi_label_classification"
    return {**theirs, OURS: ours}


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
        file: str = WEIGHTS, *, revision: str | None = None, token: str | None = None, local_files_only: bool = False,
    ) -> Student:  # fmt: skip
        """Load an exported folder, or a repository of the Hugging Face Hub (org/name) where there is no such folder.

        Of a repository only what loading needs is downloaded, once; HF_HUB_OFFLINE is honoured.

        Args:
            module: the network to load into; needed for a user's own, built by name otherwise.
            trust_remote_code: run code that came with a Hugging Face model.
            file: of the weights, model-fp16.safetensors for example; they are computed with in float32.
            revision: of a repository: branch, tag or commit.
            token: of the Hub, for private repositories; None: HF_TOKEN, or that of `hf auth login`. Kept nowhere.
            local_files_only: take a repository from the cache alone.

        Raises:
            ConfigError: no student there, or one whose network must be given.
            HubError: the repository can't be had.
        """
        name, there = str(folder), Path(folder)
        if isinstance(folder, str) and repository.is_repository(folder) and not there.exists():
            there = repository.fetch(folder, file, revision, token, local_files_only, code=trust_remote_code)
        config = _read_config(there, name)
        if module is None and config.get("hf"):
            form = config["hf"].get("saved")
            module = rebuild(home_of(there, form), config["num_classes"], config["hf"], trust_remote_code)
            if file == WEIGHTS and isinstance(module, HuggingFaceNet):
                load_network(module, there, form)
            else:
                load_weights(module, str(there / file), "student")
        else:
            if module is None and not config.get("backbone"):
                raise ConfigError(f"{name} is a network of your own: Student.from_pretrained(folder, module=YourNet())")
            if module is None:
                module = build(config["backbone"], config["num_classes"], **config.get("options", {}))
            load_weights(module, str(there / file), "student")
        card = there / "README.md"
        return cls(module, config, card.read_text() if card.exists() else None)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write weights, config and card to a folder, complete or not at all, as `from_pretrained` loads them.

        Raises:
            ConfigError: the config that the student was made with doesn't say what it is.
        """
        folder = Path(folder)
        if "num_classes" not in self.config:
            raise ConfigError(
                'the student\'s config lacks num_classes; Student(module, {"modality": ..., "num_classes": ...})'
            )
        with replace_folder(folder) as temporary:
            _write_network(temporary, self.module, self.config)
            card = self.card or make_card(_read_config(temporary, str(folder)))
            (temporary / "README.md").write_text(card.partition(_EXPORTED)[0].rstrip() + "\n")
        return folder

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, revision: str | None = None,
        license: str | None = None,
    ) -> str:  # fmt: skip
        """Put the student into a repository of the Hugging Face Hub, which is made where there is none; its address.

        Args:
            repo_id: org/name.
            private: of a new repository; None: as the owner's settings say.
            token: None: HF_TOKEN, or that of `hf auth login`. Kept nowhere.
            revision: a branch, made where there is none; None: main.
            license: as the Hub writes it (mit, cc-by-4.0, ...); None: what the card says, else "other".

        Raises:
            HubError: the Hub can't be reached, or refuses the token.
            ConfigError: a name or a card that the Hub would refuse.
        """
        repository.check_name(repo_id)
        with TemporaryDirectory() as place:
            folder = self.save_pretrained(Path(place) / "student")
            card = published((folder / "README.md").read_text(), repo_id, license)
            return repository.publish(folder, card, repo_id, private, token, revision)

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
        if (folder / WEIGHTS).exists() and isinstance(self.module, HuggingFaceNet) and config.get("hf"):
            _write_network(folder, self.module, config)  # the same weights as transformers has them
        else:
            (folder / "config.json").write_text(json.dumps({**config, "hf": _unsaved(config.get("hf"))}, indent=1))
            if isinstance(self.module, HuggingFaceNet):
                self.module.save_files(folder / TRANSFORMERS)
        card = self.card or make_card(config)
        use = ""
        if (folder / "onnx" / "run.py").exists():
            use = "`python onnx/run.py batch.npy` prints a batch's classes; it needs onnxruntime and NumPy alone.\n\n"
        (folder / "README.md").write_text(f"{card.partition(_EXPORTED)[0].rstrip()}\n\n{_EXPORTED}\n\n{use}{table}")


def _unsaved(facts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What is told of a Hugging Face student whose weights lie elsewhere, or all in one file."""
    return None if facts is None else {**facts, "saved": "plain"}


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        raise ConfigError(f"{name} holds no exported student; make one with: mstdistill export RUN") from None
    config = config.get(OURS, config) if isinstance(config, dict) else {}
    if "num_classes" not in config:
        raise ConfigError(f"{name} holds no student of mstdistill; a recipe names a Hugging Face model as `hf`")
    return config
