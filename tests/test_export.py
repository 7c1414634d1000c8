"""Exported files: each is run by its own runtime and agrees with the student; what can't be exported is named."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from mstdistill import Student
from mstdistill.backbones.catalogue import build
from mstdistill.backbones.pretrained import build_pretrained
from mstdistill.config import ModelSettings, parse
from mstdistill.data.decode.processors import Processing
from mstdistill.data.prepared import store
from mstdistill.data.scale import Scale
from mstdistill.data.split import Split
from mstdistill.engine.progress import Screen
from mstdistill.errors import ConfigError
from mstdistill.export import checking, names, timing, to_onnx, to_safetensors
from mstdistill.export.exporting import Exported
from mstdistill.export.rows import RandomRows, SplitRows
from mstdistill.pipeline import load_data, train

from . import tiny_hub
from .conftest import Command, TensorSplit, refused

QUANTISATIONS = list(names.QUANTISATIONS)
ALL = ["safetensors", "onnx", "torch-export"]


def digits(count: int, seed: int) -> dict[str, np.ndarray]:
    """Ten patterns in noise: what a student learns in a second, and is sure of."""
    rng, label = np.random.default_rng(seed), np.arange(count) % 10
    patterns = np.random.default_rng(7)
    image, audio = patterns.random((10, 1, 8, 8)), patterns.random((10, 1, 32, 32))
    return {
        "image": (image[label] + 0.2 * rng.standard_normal((count, 1, 8, 8))).astype(np.float32),
        "audio": audio[label].astype(np.float32), "label": label,
    }  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _timed_in_passing() -> Iterator[None]:
    """How fast files are is for another day."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_TURNS", 1)
        patch.setattr(timing, "_SECONDS", 0.001)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of av-digits on made-up rows."""
    folder = tmp_path_factory.mktemp("export")
    splits = {name: digits(count, i) for i, (name, count) in enumerate({"train": 200, "validation": 50,
                                                                         "test": 61}.items())}  # fmt: skip
    store.write(folder / "data", splits, {"task": "av-digits"})
    settings: dict[str, Any] = {
        "task": "av-digits", "target": "image", "batch_size": 20, "data": {"dir": str(folder / "data")},
        "models": {"image": {
            "student": {"backbone": "digits-image", "options": {"width": 16}},
            "teachers": [{"name": "audio", "backbone": "digits-audio", "modalities": ["audio"], "taps": ["trunk.fc1"]}],
        }},
        "cotrain": {"epochs": 1}, "specialise": {"epochs": 1}, "distill": {"epochs": 5, "lr": 3e-3},
        "alone": {"enabled": False}, "run": {"trackers": []},
    }  # fmt: skip
    train(parse(settings, "test"), folder / "run", Screen(quiet=True))
    return folder / "run"


@pytest.fixture(scope="module")
def splits(run: Path) -> dict[str, Split]:
    return load_data(run, Screen(quiet=True))[2]


@pytest.fixture(scope="module")
def exported(run: Path, splits: dict[str, Split], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """That run's student as everything but ExecuTorch's."""
    out = tmp_path_factory.mktemp("exported") / "student"
    return Student.from_pretrained(run / "student").export(out, ALL, QUANTISATIONS, **splits)  # type: ignore[arg-type]


def answers(file: Path, view: Tensor) -> np.ndarray:
    """An ONNX file's logits, by onnxruntime alone."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"input": view.numpy()})[0]
    return found


def test_the_command_makes_tries_and_tells(
    run: Path, splits: dict[str, Split], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "out"
    words = ("export", run, out, "--format", "safetensors,onnx", "--quantize", "none,int8-static")
    code, shown, err = command(*words)
    assert (code, err) == (0, "")
    assert "safetensors int8-static: there is no such thing" in shown
    assert max(len(line) for line in shown.splitlines() if "\N{BOX DRAWINGS LIGHT VERTICAL}" in line) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    figures = json.loads((out / "export.json").read_text())
    assert [one["title"] for one in figures["artefacts"]] == ["safetensors", "onnx", "onnx int8-static"]
    inputs, label = splits["test"].fetch(np.arange(61), ["image"])
    student = Student.from_pretrained(run / "student")
    for one in figures["artefacts"][1:]:  # told as another one measures them
        logits = answers(out / one["file"], inputs["image"])
        test = one["splits"][1]
        assert (test["split"], test["rows"], test["of_rows"]) == ("test", 61, 61)
        assert test["accuracy"] == pytest.approx(float((logits.argmax(1) == label.numpy()).mean()))
        assert test["equal"] == pytest.approx(
            float((logits.argmax(1) == student.predict(inputs["image"]).numpy()).mean())
        )
        with torch.no_grad():
            off = float(np.abs(logits - student(inputs["image"]).numpy()).max())
        assert test["largest_difference"] == pytest.approx(off, rel=1e-3, abs=1e-6)
        assert one["bytes"] == (out / one["file"]).stat().st_size
        assert set(one["seconds"]) == {"1", "32"}
        assert all(seconds > 0 for seconds in one["seconds"].values())
    card = (out / "README.md").read_text()
    assert card.startswith((run / "student" / "README.md").read_text().rstrip())
    table = (out / "export.md").read_text().partition("\n\n")[2]
    assert card.endswith(table)
    assert "| onnx int8-static | onnx/model-int8-static.onnx |" in table
    refused(command(*words), f"{out} is there already")
    Student.from_pretrained(out).export(tmp_path / "again", ["safetensors"], view="image", test=splits["test"])
    assert (tmp_path / "again" / "README.md").read_text().count("## Exported files") == 1


def test_every_quantisation_keeps_what_it_promises(exported: Exported) -> None:
    assert exported.within, exported.beyond
    artefacts = {one["title"]: one for one in exported.figures["artefacts"]}
    assert len(artefacts) == 2 + 4 + 4
    for one in artefacts.values():
        for split in one["splits"]:
            off = split["relative_difference"]
            # changed at all, where it says so
            assert (1e-5 < off < 0.3) if one["quantise"] != "none" else off < 1e-4, one["title"]
            differing = round(split["rows"] * abs(split["accuracy"] - split["student_accuracy"]))
            assert differing <= max(1, 0.01 * split["rows"])
    assert artefacts["onnx"]["splits"][1]["accuracy"] > 0.9
    for title, most in {"safetensors fp16": 0.55, "onnx fp16": 0.6, "onnx int8-static": 1 / 3,
                        "onnx int8-dynamic": 1 / 3}.items():  # fmt: skip
        assert artefacts[title]["of_float32"] < most, title


def test_files_are_what_they_say(exported: Exported, run: Path, splits: dict[str, Split]) -> None:
    """Weights in half precision load; torch alone runs its own file; any batch goes in, and none of the calls is one
    row's logits for another."""
    inputs, _ = splits["test"].fetch(np.arange(7), ["image"])
    view, student = inputs["image"], Student.from_pretrained(run / "student")
    half = load_file(exported.folder / "model-fp16.safetensors")
    assert {x.dtype for x in half.values() if x.is_floating_point()} == {torch.float16}
    loaded = Student.from_pretrained(exported.folder, file="model-fp16.safetensors")
    program = torch.export.load(exported.folder / "torch-export" / "model.pt2").module()
    with torch.no_grad():
        wanted = student(view)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        torch.testing.assert_close(loaded(view), wanted, rtol=1e-2, atol=1e-2)
        for count in (1, 2, 7):
            torch.testing.assert_close(program(view[:count]), wanted[:count])
            for name in ("model", "model-int8-static"):
                file = exported.folder / "onnx" / f"{name}.onnx"
                assert np.abs(answers(file, view[:count]) - answers(file, view)[:count]).max() < 1e-5


def plain_environment(folder: Path, wanted: Sequence[str]) -> Path:
    """An environment of its own with these installed packages and what they say they need, and nothing else; its
    interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    place = next(folder.glob("lib/python*/site-packages"))
    names, seen = list(wanted), set()
    while names:
        name = re.split(r"[^\w.-]", names.pop(), maxsplit=1)[0].lower()
        if name in seen:
            continue
        seen.add(name)
        package = importlib.metadata.distribution(name)
        names += [need for need in package.requires or () if "extra ==" not in need]
        for top in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (place / top).exists():
                (place / top).symlink_to(Path(str(package.locate_file(top))))
    return folder / "bin" / "python"


def test_a_folder_runs_with_onnxruntime_and_numpy_alone(
    exported: Exported, run: Path, splits: dict[str, Split], tmp_path: Path
) -> None:
    python = plain_environment(tmp_path / "env", ["onnxruntime", "numpy"])
    folder = shutil.copytree(exported.folder / "onnx", tmp_path / "elsewhere")
    program = folder / "run.py"
    assert len(program.read_text().splitlines()) == 10
    inputs, _ = splits["test"].fetch(np.arange(12), ["image"])
    np.save(tmp_path / "batch.npy", inputs["image"].numpy())
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def said(*words: object) -> str:
        done = subprocess.run([python, *map(str, words)], capture_output=True, text=True, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    lacking = "import importlib.util as i; print([n for n in ('torch', 'mstdistill', 'onnx') if i.find_spec(n)])"
    assert said("-c", lacking).strip() == "[]"
    student = Student.from_pretrained(run / "student")
    wanted = [student.config["class_names"][int(i)] for i in student.predict(inputs["image"])]
    assert json.loads(said(program, "batch.npy")) == wanted
    for file in sorted(folder.glob("*.onnx")):
        found = json.loads(said(program, "batch.npy", file))
        assert sum(a != b for a, b in zip(found, wanted, strict=True)) <= 1, file


def test_beyond_its_tolerance_a_file_is_kept_and_the_exit_code_is_1(
    run: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is wrong, and one of a tolerance that nothing keeps."""
    real = to_safetensors.state_of
    monkeypatch.setattr(to_safetensors, "state_of", lambda module: {k: -x for k, x in real(module).items()})
    monkeypatch.setitem(names.TOLERANCES, "fp16", names.Tolerance(1e-9, 0.9, 0.1))
    words = ("export", run, tmp_path / "out", "--format", "safetensors", "--quantize", "none,fp16")
    code, shown, _ = command(*words)
    assert code == 1
    lines = [line for line in shown.splitlines() if line.startswith("beyond its tolerance, kept: ")]
    assert any("safetensors: test: " in line and "points of accuracy are lost" in line for line in lines), shown
    assert any("safetensors fp16: test: a logit differs by" in line for line in lines)
    assert (tmp_path / "out" / "model.safetensors").exists()
    figures = json.loads((tmp_path / "out" / "export.json").read_text())
    assert [one["within"] for one in figures["artefacts"]] == [False, False]
    assert "| no |" in (tmp_path / "out" / "export.md").read_text()


def test_a_slow_file_is_tried_on_fewer_rows_and_that_is_counted() -> None:
    rows = RandomRows(nn.Identity(), (2,), count=320)

    def slow(view: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return view

    calls, want = 0, 10
    found = checking.compare(nn.Identity(), {"a": slow}, rows, nn.Identity(), None, patience=1e-9)
    assert (calls, found["a"].rows, found["a"].equal) == (1, 32, 32)
    calls = 0
    assert checking.compare(nn.Identity(), {"a": slow}, rows, nn.Identity(), None)["a"].rows == 320
    assert calls == want


def test_logits_that_are_no_numbers_are_beyond() -> None:
    found = checking.Agreement()
    found.add(torch.full((4, 3), torch.nan), torch.randn(4, 3), None, None)
    assert found.beyond(names.TOLERANCES["int8-static"], random=True)
    json.dumps(found.as_dict(), allow_nan=False)


def test_labels_that_do_not_count_are_left_out() -> None:
    found, want = checking.Agreement(), torch.eye(4)
    found.add(torch.eye(4)[[0, 1, 2, 2]], want, torch.tensor([0, 255, -1, 3]), ignore=255)
    assert (
        found.as_dict() | {"predictions": 4, "equal": 0.75, "accuracy": 0.5, "student_accuracy": 1.0} == found.as_dict()
    )


def test_several_classes_at_once_are_each_a_prediction() -> None:
    found, want = checking.Agreement(), torch.tensor([[1.0, -1, 2], [-1, -1, 1]])
    found.add(want * torch.tensor([1, 1, -0.1]), want, torch.tensor([[1, 0, -1], [1, 0, 1]]), None)
    told = {"rows": 2, "predictions": 6, "equal": 4 / 6, "accuracy": 3 / 5, "student_accuracy": 4 / 5}
    assert found.as_dict() | told == found.as_dict()


def test_rows_without_the_modality_are_left_out() -> None:
    split: Any = TensorSplit({"m": torch.arange(6.0).view(6, 1)}, torch.zeros(6, dtype=torch.int64))
    split.present = {"m": np.array([1, 0, 1, 1, 0, 1], dtype=bool)}
    assert SplitRows(split, "m").take(0, 4)[0].flatten().tolist() == [0, 2, 3, 5]
    assert SplitRows(split, "m", 2).index.tolist() == [0, 5]


# Students of all tasks


def settled(module: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Random weights whose norms know what they see: logits of a size."""
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean over batches
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(2 if norms else 0):
            module.train()(torch.rand(4, *shape))
    return module.eval()


def check_export(
    module: nn.Module, config: Mapping[str, Any], out: Path, formats: Sequence[str] = ("onnx", "torch-export"),
    quantise: Sequence[str] = ("none",),
) -> Exported:  # fmt: skip
    """Made, within its tolerance on random rows, for batches of any size."""
    student = Student(module, {"num_classes": 3, "class_names": [], **config})
    done = student.export(out, formats, quantise, rows=3)
    assert done.within, done.beyond
    assert done.figures["random"]
    assert json.loads((out / "onnx" / "config.json").read_text())["num_classes"] == 3
    rows = RandomRows(module, tuple(config["input_shape"]), count=5, seed=3)
    view, _ = rows.take(0, 5)
    for count in (1, 5):
        with torch.no_grad():
            wanted = student(view[:count]).numpy()
        found = answers(out / "onnx" / "model.onnx", view[:count])
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
    return done


@pytest.mark.parametrize(
    ("backbone", "shape", "options"),
    [
        ("ThreeLayerCNN-A", (1, 112, 112), {}),
        ("AudioBranchNet-VGGS", (10, 128), {}),
        ("MLP-Tb", (768,), {}),
        ("FuseNet-RGBbranch", (3, 32, 64), {"width": 8}),
    ],
)
def test_students_of_the_papers_tasks(
    backbone: str, shape: tuple[int, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    module = settled(build(backbone, 3, **options), shape)
    check_export(module, {"input_shape": list(shape)}, tmp_path / "out")


# Hugging Face students


def hugging(folder: Path, kind: str) -> nn.Module:
    """A tiny ViT, BERT or AST with its processor."""
    made = {"image": tiny_hub.vit, "text": lambda to: tiny_hub.bert(to, True), "audio": tiny_hub.ast}[kind](folder)
    processing = Processing(kind, made)
    settings = ModelSettings(hf=made, pretrained=False, options={"num_hidden_layers": 1})
    module = build_pretrained(settings, 3, [processing], [processing.port()], "student")
    module.processing = (processing,)
    return module.eval()


@pytest.mark.parametrize("kind", ["text", "audio"])
def test_hugging_face_students(kind: str, tmp_path: Path) -> None:
    module: Any = hugging(tmp_path / "model", kind)
    done = check_export(module, {"modality": kind, "input_shape": module.ports[0].shape}, tmp_path / "out", ["onnx"])
    facts = json.loads((done.folder / "config.json").read_text())["preprocessing"]
    assert facts["input_type"] == ("int32" if kind == "text" else "float32")
    assert facts["before"]["processor"] == type(module.processing[0].tool).__name__
    assert facts.get("inside") is None
    if kind == "text":
        assert facts["before"]["rows"] == ["input_ids", "attention_mask", "token_type_ids"]
        assert facts["before"]["tokens"] == 16
    else:
        assert facts["before"]["settings"]["sampling_rate"] == tiny_hub.RATE
    assert (done.folder / "transformers" / "config.json").exists()


def test_a_graph_takes_pixels(tmp_path: Path) -> None:
    """A processor's scaling is in the graph: what goes in are a resized picture's bytes."""
    module = hugging(tmp_path / "model", "image")
    student = Student(module, {"modality": "image", "num_classes": 3, "class_names": list(tiny_hub.CLASSES)})
    pictures = tiny_hub.rows(6)["image"]
    done = student.export(tmp_path / "out", ["onnx"], ["none"])
    facts = json.loads((done.folder / "onnx" / "config.json").read_text())["preprocessing"]
    assert facts["input_type"] == "uint8"
    assert facts["inside"]["low"] == pytest.approx([127.5] * 3)
    assert facts["before"]["settings"]["size"] == {"height": 32, "width": 32}
    tool: Any = module.processing[0].tool  # type: ignore[union-attr,index]
    pixels = tool(pictures, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"]
    assert pixels.dtype == np.uint8
    found = answers(done.folder / "onnx" / "model.onnx", torch.from_numpy(pixels))
    with torch.no_grad():
        np.testing.assert_allclose(found, student(student.view(pictures)).numpy(), atol=1e-4)


def test_a_processor_that_does_more_than_scale_stays_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It turns the colours: undoing the scaling gives no picture back."""
    module: Any = hugging(tmp_path / "model", "image")
    tool = module.processing[0].tool
    plain = type(tool)

    def turned(self: Any, *given: Any, **settings: Any) -> dict[str, np.ndarray]:
        return {"pixel_values": plain.__call__(self, *given, **settings)["pixel_values"][:, ::-1].copy()}

    with monkeypatch.context() as patch:
        patch.setattr(tool, "__class__", type("Turning", (plain,), {"__call__": turned}))
        done = Student(module, {"num_classes": 3}).export(tmp_path / "out", ["safetensors"])
    facts = json.loads((done.folder / "config.json").read_text())["preprocessing"]
    assert (facts["inside"], facts["input_type"]) == (None, "float32")


# A person's own networks


class Told(nn.Module):
    """Its logits lie in a mapping; dropout would show whether it is left in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 3)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        feature = self.body(pixels).mean((2, 3))
        return {"feature": feature, "logits": self.head(feature)}


class Pixels(TensorSplit):
    """Bytes that are scaled when they are read, as prepared pictures are."""

    scales: Mapping[str, Scale] = {"pixels": Scale(torch.tensor([3.0, 0.0, 10.0]).view(1, 3, 1, 1),
                                                   torch.tensor([200.0, 255.0, 120.0]).view(1, 3, 1, 1))}  # fmt: skip

    def stored(self, index: np.ndarray, modalities: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        return super().fetch(index, modalities)

    def fetch(self, index: np.ndarray, modalities: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        inputs, label = self.stored(index, modalities)
        return {name: self.scales[name](x) for name, x in inputs.items()}, label


def pixels(count: int, seed: int) -> Pixels:
    g = torch.Generator().manual_seed(seed)
    bytes_ = torch.randint(256, (count, 3, 12, 12), generator=g, dtype=torch.uint8)
    return Pixels({"pixels": bytes_}, torch.randint(3, (count,), generator=g))


def test_scaling_of_prepared_data_is_in_the_graph(tmp_path: Path) -> None:
    train, test = pixels(40, 1), pixels(20, 2)
    student = Student(settled(Told(), (3, 12, 12)), {"modality": "pixels", "num_classes": 3})
    done = student.export(tmp_path / "out", ["onnx", "torch-export"], ["none", "int8-static"], train=train, test=test)
    assert done.figures["calibrated_on"] == 40
    artefacts = {one["title"]: one["splits"][0] for one in done.figures["artefacts"]}
    assert artefacts["onnx"]["relative_difference"] < 1e-5
    assert artefacts["torch-export"]["relative_difference"] < 1e-5
    stored = test.inputs["pixels"]
    with torch.no_grad():
        wanted = student(test.fetch(np.arange(20), ["pixels"])[0]["pixels"])
    np.testing.assert_allclose(answers(tmp_path / "out" / "onnx" / "model.onnx", stored), wanted.numpy(), atol=1e-5)
    facts = json.loads((tmp_path / "out" / "config.json").read_text())
    assert facts["preprocessing"]["input_type"] == "uint8"
    assert facts["preprocessing"]["inside"]["spread"] == [200.0, 255.0, 120.0]
    assert facts["input_shape"] == [3, 12, 12]


def test_an_own_network_from_python(tmp_path: Path) -> None:
    """Given back as it was; items as `distill` takes them, unlabelled ones too."""
    g = torch.Generator().manual_seed(0)
    items = [{"pixels": torch.rand(3, 12, 12, generator=g), "label": i % 3 if i % 2 else None} for i in range(24)]
    module = settled(Told(), (3, 12, 12))
    student = Student(module, {"modality": "pixels", "num_classes": 3})
    module.train()
    module.body[1].eval()  # type: ignore[index,operator,union-attr]
    before = {name: x.clone() for name, x in module.state_dict().items()}
    done = student.export(tmp_path / "out", ["onnx", "torch-export"], ["fp16"], validation=items)
    assert done.within, done.beyond
    assert [part.training for part in (module, module.body[1], module.body[3])] == [True, False, True]  # type: ignore[index,union-attr]
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    split = done.figures["artefacts"][0]["splits"][0]
    assert (split["split"], split["rows"]) == ("validation", 24)
    assert split["student_accuracy"] is not None
    with pytest.raises(ConfigError, match="float32"):
        Student(Told().double(), {"input_shape": [3, 12, 12]}).export(tmp_path / "no")
    with pytest.raises(ConfigError, match="the shape of the student's input isn't known"):
        Student(Told(), {}).export(tmp_path / "no")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


# What can't be


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True).expand(2, 4)


@pytest.mark.parametrize(
    ("inner", "form", "told"),
    [
        (Bessel, "onnx", r"^onnx has no aten\.special_bessel_j0, which Sequential uses at submodule 1, "
                         r".*test_export\.py:\d+; write it otherwise or choose another format$"),
        (Branching, "onnx", r"^onnx: Sequential can't be traced \(.*\), at .*test_export\.py:\d+: return x \+ 1 if"),
        (Branching, "torch-export", r"^torch-export: Sequential can't be traced \(.*\), at .*test_export\.py:\d+: "),
        (Fixed, "onnx", r"^onnx: Sequential gives 2 rows of logits whatever the batch"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_named_with_its_place(
    inner: type[nn.Module], form: str, told: str, tmp_path: Path
) -> None:
    student = Student(nn.Sequential(nn.Linear(4, 4), inner(), nn.Linear(4, 3)), {"input_shape": [4]})
    with pytest.raises(ConfigError, match=told) as stop:
        student.export(tmp_path / "out", [form])
    assert "\n" not in str(stop.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "onx"], ["unknown format 'onx'", "onnx"]),
        (["--quantize", "int8"], ["unknown quantisation 'int8'", "int8-"]),
        (["--format", ","], ["no format given; known: safetensors"]),
        (["--format", "safetensors", "--quantize", "int8-static"], ["int8-static isn't known to safetensors", "onnx"]),
        (["--format", "onnx,executorch", "--quantize", "fp16"], ["executorch knows none, int8-static, not fp16"]),
        (["--format", "onnx", "--quantize", "int8-static", "--calibrate", "0"], ["calibrated on", "0 are none"]),
        (["--format", "onnx", "--quantize", "int8-static", "--without-data"], ["calibrated on", "int8-dynamic"]),
        (["--format", "onnx", "--rows", "0"], ["0 are none"]),
    ],
)  # fmt: skip
def test_requests_that_are_refused(
    words: list[str], told: list[str], run: Path, command: Command, tmp_path: Path
) -> None:
    refused(command("export", run, tmp_path / "out", *words), *told)
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(
    run: Path, splits: dict[str, Split], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An extra, calibration rows, the data."""
    (tmp_path / "there").mkdir()
    refused(command("export", run, tmp_path / "there", "--format", "onnx"), f"{tmp_path / 'there'} is there already")
    refused(command("export", tmp_path, tmp_path / "out", "--format", "onnx"), "no finished run")
    with monkeypatch.context() as patch:
        patch.setattr(
            names,
            "find_spec",
            lambda name: None if name in ("onnxscript", "torchao", "executorch") else find_spec(name),
        )
        for words, told in (
            (["onnx"], "onnx needs onnxscript: pip install 'mstdistill[export]'"),
            (["executorch"], "executorch needs executorch: pip install 'mstdistill[executorch]'"),
            (["torch-export", "--quantize", "int8-dynamic"], "torch-export int8-dynamic needs torchao: pip install "
                                                             "'mstdistill[torch-int8]'"),
        ):  # fmt: skip
            refused(command("export", run, tmp_path / "out", "--format", *words), told)
    student = Student.from_pretrained(run / "student")
    for rows in (None, TensorSplit({"image": torch.zeros(0, 1, 8, 8)}, torch.zeros(0, dtype=torch.int64))):
        with pytest.raises(ConfigError, match="calibrated on training rows, and there are none"):
            student.export(tmp_path / "out", ["onnx"], ["int8-static"], train=rows, test=splits["test"])
    gone = shutil.copytree(run, tmp_path / "gone")
    settings = (gone / "config.yaml").read_text().replace(str(run.parent / "data"), str(tmp_path / "nothing"))
    (gone / "config.yaml").write_text(settings)
    refused(command("export", gone, tmp_path / "out", "--format", "onnx"), "nothing", "--without-data")
    assert not (tmp_path / "out").exists()
    code, shown, _ = command("export", gone, tmp_path / "out", "--format", "safetensors", "--without-data")
    assert (code, "random" in shown) == (0, True)


def test_an_interrupted_export_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> Iterator[None]:
        raise KeyboardInterrupt

    monkeypatch.setattr(to_onnx, "finish", stopped)
    with pytest.raises(KeyboardInterrupt):
        Student.from_pretrained(run / "student").export(tmp_path / "out", ["onnx"], ["none"])
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("executorch") is None, reason="executorch isn't installed")
def test_executorch_runs_its_own_file(run: Path, splits: dict[str, Split], tmp_path: Path) -> None:
    made = Student.from_pretrained(run / "student").export(tmp_path / "out", ["executorch"], ["none", "int8-static"],
                                                           train=splits["train"], test=splits["test"])  # fmt: skip
    assert made.within, made.beyond
    assert json.loads((tmp_path / "out" / "executorch" / "config.json").read_text())["largest_batch"] >= 2


def test_the_docs_say_what_is() -> None:
    """Formats, tolerances, and the tables of the committed figures."""
    root = Path(__file__).parents[1]
    page = (root / "docs" / "export.md").read_text()
    for form, known in names.FORMATS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{form}` | yes"))
        cells = [cell.strip() for cell in row.split("|")[2:6]]
        assert [name for name, cell in zip(QUANTISATIONS, cells, strict=True) if cell == "yes"] == list(known)
    for name, tolerance in names.TOLERANCES.items():
        row = next(line for line in page.splitlines() if line.startswith("| `") and f"`{name}`" in line.split("|")[1])
        found = [float(re.findall(r"[\d.]+", cell)[0]) for cell in row.split("|")[2:5]]
        assert found == pytest.approx([tolerance.logits, 100 * tolerance.equal, 100 * tolerance.accuracy]), name
    spec = spec_from_file_location("export_table", root / "scripts" / "export_table.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    figures = json.loads((root / "docs" / "results" / "export-cpu.json").read_text())
    assert script.compared(figures) in page
    recipes = {f"{task} {target}" for task in (*script.TASKS, "av-digits") for target in load_models(task)}
    others = {"Hugging Face ViT", "Hugging Face BERT", "own network"}
    assert {*recipes, *others} <= set(figures["students"])


def load_models(task: str) -> dict[str, Any]:
    """A shipped recipe's pairings."""
    content: dict[str, Any] = yaml.safe_load(resources.files("mstdistill.recipes").joinpath(f"{task}.yaml").read_text())
    return content["models"]
