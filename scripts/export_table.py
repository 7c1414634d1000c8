"""Every task's student in every format: how far off, how right, how large, how fast, for docs/export.md.

    python scripts/export_table.py --run runs/av-digits-image --run ... --out docs/results/export-cpu.json  (an hour)
    python scripts/export_table.py --show docs/results/export-cpu.json     the tables of docs/export.md

Students of finished runs are tried on their validation and test rows. The others have random weights, with norms that
have seen a few batches, and random rows: what is told of them are logits, sizes and times. ExecuTorch's files are made
where the package is.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mstdistill import Student
from mstdistill.backbones.catalogue import build
from mstdistill.backbones.pretrained import build_pretrained
from mstdistill.config import ModelSettings
from mstdistill.data.decode.processors import Processing
from mstdistill.data.sources.registry import find_task
from mstdistill.engine.progress import Screen
from mstdistill.errors import ConfigError
from mstdistill.export.exporting import export
from mstdistill.export.intake import find_intake
from mstdistill.export.names import CALIBRATE, FORMATS, Kind, kinds
from mstdistill.export.rows import RandomRows, Rows, SplitRows
from mstdistill.files import write_text
from mstdistill.markup import markdown_table
from mstdistill.pipeline import load_data

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
TASKS = ("av-digits", "av-mnist", "ravdess", "vggsound-50k", "crisismmd-v2", "nyu-depth-v2")
# Pictures of any size are tried at this one; and the random rows of inputs that take long.
SIZES = {"nyu-depth-v2": (120, 160)}
FEW = {"ravdess video": 2, "nyu-depth-v2 rgb": 2, "nyu-depth-v2 depth": 2, "vggsound-50k visual": 2}
RANDOM = 32


class Own(nn.Module):
    """A person's own network: two convolutions, an attention over their places, logits in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.BatchNorm2d(32), nn.GELU(), nn.Conv2d(32, 64, 2, 2))
        self.mix = nn.MultiheadAttention(64, 4, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        places = self.stem(image).flatten(2).transpose(1, 2)
        return {"logits": self.head(self.mix(places, places, places, need_weights=False)[0].mean(1))}


Subject = tuple[str, nn.Module, tuple[int, ...]]


def of_tasks() -> Iterator[Subject]:
    """The recipes' students with random weights."""
    for name in TASKS:
        task = find_task(name)
        recipe = yaml.safe_load(resources.files("mstdistill.recipes").joinpath(f"{name}.yaml").read_text())
        for target, pairing in recipe["models"].items():
            settings, shape = pairing["student"], list(task.modalities[target])
            if None in shape:
                shape[-2:] = SIZES[name]
            module = build(settings["backbone"], task.num_classes, **(settings.get("options") or {}))
            yield f"{name} {target}", module, tuple(n for n in shape if n is not None)


def of_transformers(folder: Path) -> Iterator[Subject]:
    """Small ViT, BERT and AST of random weights with their processors."""
    import transformers as hf

    small: dict[str, Any] = {"num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(2000))]
    (folder / "vocab.txt").write_text("\n".join(words))
    made: list[tuple[str, str, Any, Any]] = [
        ("ViT", "image", hf.ViTForImageClassification(hf.ViTConfig(hidden_size=128, image_size=96, **small)),
         hf.ViTImageProcessor(size={"height": 96, "width": 96})),
        ("BERT", "text", hf.BertForSequenceClassification(hf.BertConfig(vocab_size=len(words), hidden_size=128, **small)),  # noqa: E501
         hf.BertTokenizer(str(folder / "vocab.txt"), model_max_length=64)),
        ("AST", "audio", hf.ASTForAudioClassification(hf.ASTConfig(hidden_size=128, max_length=128, **small)),
         hf.ASTFeatureExtractor(max_length=128)),
    ]  # fmt: skip
    for name, kind, model, tool in made:
        place = folder / name
        model.save_pretrained(place)
        tool.save_pretrained(place)
        processing = Processing(kind, str(place))
        module = build_pretrained(ModelSettings(hf=str(place)), 10, [processing], [processing.port()], name)
        module.processing = (processing,)
        yield f"Hugging Face {name}", module, tuple(module.ports[0].shape)


def settled(module: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Norms that have seen a few batches: without, logits of a deep network vanish."""
    norms = [one for one in module.modules() if isinstance(one, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))]
    for norm in norms:
        norm.momentum = None  # the mean over batches
    with torch.no_grad():
        for _ in range(3 if norms else 0):
            module.train()(torch.rand(4, *shape))
    return module.eval()


def tried(make: Callable[[Path, list[Kind]], dict[str, Any]]) -> dict[str, Any]:
    """A format's artefacts of a student in one go, or one by one where some can't be made; those are told."""
    found: dict[str, Any] = {}
    artefacts: list[dict[str, Any]] = []
    refused: dict[str, str] = {}

    def attempt(wanted: list[Kind]) -> None:
        with tempfile.TemporaryDirectory() as place:
            try:
                figures = make(Path(place) / "out", wanted)
            except ConfigError as error:
                if len(wanted) == 1:
                    refused[wanted[0].title] = str(error).replace(f"{ROOT}/", "")
                for kind in wanted if len(wanted) > 1 else ():
                    attempt([kind])
                return
        artefacts.extend(figures["artefacts"])
        found.update({key: figures[key] for key in ("network", "parameters", "float32_bytes", "calibrated_on")})
        found.update({key: figures[key] for key in ("tolerances", "machine")}, tolerances={
            **found.get("tolerances", {}), **figures["tolerances"]})  # fmt: skip

    for form, known in FORMATS.items():
        if form != "executorch" or find_spec("executorch"):
            attempt(kinds([form], known))
    return {**found, "artefacts": artefacts, "refused": refused}


def of_run(run: Path) -> dict[str, Any]:
    """A finished run's student on its own rows."""
    screen = Screen(quiet=True)
    student = Student.from_pretrained(run / "student")
    task, view, splits = load_data(run, screen)
    student.config["ignore_index"] = task.ignore_index

    tries: dict[str, Rows] = {name: SplitRows(splits[name], view) for name in ("validation", "test")}
    calibration, intake = SplitRows(splits["train"], view, CALIBRATE), find_intake(student.module, splits, view)

    def make(place: Path, wanted: list[Kind]) -> dict[str, Any]:
        return export(place, student.module, student.config, wanted, tries, calibration, intake, _nothing).figures

    return {"weights": "trained", **tried(make)}


def of_random(name: str, module: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """Random weights on random rows."""
    torch.manual_seed(0)
    intake, count = find_intake(module, {}, "input"), FEW.get(name, RANDOM)
    network = settled(module, shape)
    rows, calibration = (RandomRows(network, shape, intake, count, seed) for seed in (0, 1))

    def make(place: Path, wanted: list[Kind]) -> dict[str, Any]:
        return export(place, network, {}, wanted, {"random inputs": rows}, calibration, intake, _nothing).figures

    return {"weights": "random", "input": list(shape), **tried(make)}


def _nothing(folder: Path, table: str, config: Mapping[str, Any]) -> None:
    """No card is wanted."""


def measured(runs: Sequence[Path], only: str, out: Path) -> dict[str, Any]:
    """Every student's figures by its name, in `out` too, one by one; those that it holds aren't measured again."""
    figures: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    packages = ("onnxruntime", "onnx", "onnxscript", "torchao", "executorch")
    figures = {"versions": {name: _version(name) for name in packages}, "students": {}, **figures}

    def take(name: str, measure: Callable[[], dict[str, Any]]) -> None:
        if name in figures["students"]:
            return
        started = time.monotonic()
        found = measure()
        for key in ("tolerances", "machine"):
            figures[key] = found.pop(key)
        figures["students"][name] = found
        write_text(out, json.dumps(figures, indent=1))
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)

    for run in runs:
        recipe = yaml.safe_load((run / "config.yaml").read_text())
        take(f"{recipe['task']} {recipe['target']}", partial(of_run, run))
    with tempfile.TemporaryDirectory() as place:
        torch.manual_seed(0)
        for name, module, shape in [*of_tasks(), *of_transformers(Path(place)), ("own network", Own(), (3, 64, 64))]:
            if only in name:
                take(name, partial(of_random, name, module, shape))
    return figures


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def compared(figures: Mapping[str, Any]) -> str:
    """A table an artefact, of all students."""
    titles = [kind.title for form, known in FORMATS.items() for kind in kinds([form], known)]
    header = ["student", "kB", "of float32", "logits off", "equal", "accuracy (student's)", "batch 1: eager", "file",
              "ratio", "batch 32: eager", "file", "ratio"]  # fmt: skip
    parts = []
    for title in titles:
        rows, notes = [], []
        for name, student in figures["students"].items():
            mark = "" if student["weights"] == "trained" else " *"
            for one in student["artefacts"]:
                if one["title"] == title:
                    rows.append([name + mark, *_cells(one)])
                    notes += [f"Beyond its tolerance: {name}, {line}." for line in one["beyond"]]
            if title in student["refused"]:
                rows.append([name + mark, "refused", *[""] * (len(header) - 2)])
                notes.append(f"{name}: {student['refused'][title]}.")
        if rows:
            parts.append("\n\n".join([f"### {title}", markdown_table(header, rows), *notes]))
    return "\n\n".join(parts)


def _cells(one: Mapping[str, Any]) -> list[str]:
    split = one["splits"][-1]
    accuracy = "-" if split["accuracy"] is None else f"{split['accuracy']:.2%} ({split['student_accuracy']:.2%})"
    equal = f"{split['equal']:.2%}" if split["accuracy"] is not None else "-"
    times = [cell for size in ("1", "32") for cell in _times(one["seconds"][size], one["times_as_fast"][size])]
    off = split["relative_difference"]
    return [
        f"{one['bytes'] / 1e3:,.1f}",
        f"{one['of_float32']:.3f}",
        f"{off:.0e}" if off else "0",
        equal,
        accuracy,
        *times,
    ]


def _times(seconds: float | None, ratio: float | None) -> list[str]:
    """Of eager PyTorch in the same minute, of the file, and how many times as fast it is."""
    if seconds is None or ratio is None:
        return ["-", "-", "-"]
    return [f"{1e3 * seconds * ratio:.3g} ms", f"{1e3 * seconds:.3g} ms", f"{ratio:.2f}x"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, action="append", default=[], help="a finished run; several times")
    parser.add_argument("--only", default="", help="of the random students those whose name holds this")
    parser.add_argument("--out", type=Path, default=Path("export-cpu.json"))
    parser.add_argument("--show", type=Path, help="print the tables of figures that are there")
    options = parser.parse_args()
    if options.show:
        print(compared(json.loads(options.show.read_text())))
        return
    print(compared(measured(options.run, options.only, options.out)))


if __name__ == "__main__":
    main()
