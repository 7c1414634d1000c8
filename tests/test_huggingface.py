"""Hugging Face models as teachers and students: the documented recipes on tiny models, export, taps, mistakes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from mstdistill import MstdistillError, Student, Teacher
from mstdistill.backbones.pretrained import build_pretrained
from mstdistill.cli import app
from mstdistill.config import ModelSettings, load, parse
from mstdistill.data.decode.processors import Port, Processing
from mstdistill.engine.seeding import initialising
from mstdistill.errors import ConfigError
from mstdistill.material import Material, processing_of
from mstdistill.pipeline import train
from mstdistill.teachers.ensemble import Ensemble
from mstdistill.teachers.mask import plan_mask
from mstdistill.teachers.tap import call, discover, hooked

from . import tiny_hub

RECIPES = Path(__file__).parents[1] / "docs" / "recipes"
# What the documented recipes name, and the tiny model that stands in for it.
STANDS_IN = {
    "facebook/deit-tiny-patch16-224": "vit", "openai/clip-vit-base-patch32": "clip",
    "google-bert/bert-base-uncased": "bert", "MIT/ast-finetuned-audioset-10-10-0.4593": "ast",
    "laion/clap-htsat-unfused": "clap",
}  # fmt: skip
QUICK: dict[str, Any] = {
    "batch_size": 16, "cotrain": {"epochs": 3, "lr": 3e-3, "optimizer": "adamw"}, "specialise": {"epochs": 1},
    "distill": {"epochs": 4, "lr": 3e-3}, "run": {"trackers": [], "page": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny models and raw data sets."""
    root = tmp_path_factory.mktemp("hub")
    tiny_hub.vit(root / "vit")
    tiny_hub.bert(root / "bert")
    tiny_hub.bert(root / "bert-classifier", classifier=True, layers=1)
    tiny_hub.clip(root / "clip")
    tiny_hub.ast(root / "ast")
    tiny_hub.clap(root / "clap")
    tiny_hub.data_set(root / "captioned", 120)
    tiny_hub.data_set(root / "heard", 90, sound=True, splits=True)
    return root


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Views are kept apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSTDISTILL_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def documented(name: str, hub: Path, data: Path, folder: Path, **changes: Any) -> Path:
    """The recipe of the documentation, with tiny models and the test's data; everything else stays."""
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    pairing = content["models"]["image"]
    for network in (pairing["student"], *pairing["teachers"]):
        network["hf"] = str(hub / STANDS_IN[network["hf"]])
        if "max_length" in network:
            network["max_length"] = 12
    content["data"]["dir"] = str(data)
    path = folder / f"{name}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**content, **QUICK, **changes}))
    return path


def command(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def captioned(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the image and text recipe."""
    folder = tmp_path_factory.mktemp("captioned")
    recipe = documented("image-text", hub, hub / "captioned", folder)
    shown = command("train", recipe, "--out", folder / "run")
    assert "student: new, at random: classifier" in shown
    return folder / "run"


def test_the_image_and_text_recipe_runs_whole(captioned: Path) -> None:
    summary = json.loads((captioned / "summary.json").read_text())
    figures = {entry["name"]: entry for entry in summary["networks"]}
    assert list(figures) == ["student alone", "teacher clip", "teacher bert", "distilled student"]
    assert [figures[f"teacher {name}"]["kind"] for name in ("clip", "bert")] == ["multimodal", "crossmodal"]
    assert figures["teacher clip"]["sees"] == ["image", "text"]
    assert summary["target"] == "image"
    assert set(summary["routing_share"]) == {
        "clip.joined", "clip.fc1", "bert.model.encoder.layer.8", "bert.model.pooler"
    }  # fmt: skip
    assert figures["distilled student"]["test"]["accuracy"] > 0.5


def test_evaluate_export_and_reload(captioned: Path, hub: Path, tmp_path: Path) -> None:
    summary = json.loads((captioned / "summary.json").read_text())
    command("evaluate", captioned)
    figures = json.loads((captioned / "evaluation-test.json").read_text())
    assert figures["accuracy"] == pytest.approx(summary["networks"][-1]["test"]["accuracy"])
    shown = command("export", captioned, tmp_path / "student")
    assert str(hub / "vit") in shown

    student = Student.from_pretrained(tmp_path / "student")
    recipe = parse(yaml.safe_load((captioned / "config.yaml").read_text()))
    material = Material(recipe)
    split = material.splits(_silent())["test"]
    views, label = split.fetch(np.arange(len(split)), [material.target])
    accuracy = (student.predict(views[material.target]) == label).float().mean()
    assert float(accuracy) == pytest.approx(figures["accuracy"])
    assert material.data is not None
    raw = material.data.first("image")
    view = material.student.views[0].processing
    assert view is not None
    assert torch.equal(student.view([raw])[0], torch.from_numpy(view(raw)))


def test_views_are_made_once_and_shared(captioned: Path, hub: Path, tmp_path: Path) -> None:
    recipe = documented("image-text", hub, hub / "captioned", tmp_path, seed=1, run={"trackers": [],
                        "stop_after": "cotrain"})  # fmt: skip
    assert "preparing" not in command("train", recipe, "--out", tmp_path / "run")
    same = [Processing("text", str(hub / name)).digest() for name in ("bert", "bert-classifier")]
    assert same[0] == same[1]
    assert Processing("text", str(hub / "bert"), max_length=9).digest() != same[0]


def test_the_image_and_audio_recipe_runs_whole(hub: Path, tmp_path: Path) -> None:
    recipe = documented("image-audio", hub, hub / "heard", tmp_path)
    command("train", recipe, "--out", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {entry["kind"] for entry in summary["networks"]} == {"student", "crossmodal"}
    splits = Material(parse(yaml.safe_load(recipe.read_text()))).splits(_silent())
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [90, 30, 30]


def test_a_text_student_of_packed_tokens(hub: Path, tmp_path: Path) -> None:
    """Frozen: the picture teacher would have to know the classes, and doesn't; the text classifier does."""
    models = {
        "text": {
            "student": {"hf": str(hub / "bert-classifier")},
            "teachers": [{"name": "seen", "hf": str(hub / "vit"), "modalities": ["image"], "taps": ["model.vit"]}],
        }
    }
    content = {"task": "own", "target": "text", "data": {"dir": str(hub / "captioned")}, "models": models, **QUICK}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    command("train", path, "--out", tmp_path / "run", "mask.hidden=6")
    student = Student.from_pretrained(tmp_path / "run" / "student")
    view = student.view(["a round thing", "the picture of a lined thing"])
    assert view.dtype == torch.int32
    assert list(view.shape) == [2, 3, 16]
    assert student.predict(view).shape == (2,)
    models["text"]["teachers"][0]["frozen"] = True
    with pytest.raises(ConfigError, match="knows 5 classes and the task has 3"):
        Material(parse(content)).networks(_silent())


@pytest.mark.parametrize(("name", "data", "changes"), [
    ("image-text", "captioned", {"image": [{"crop": 3}, {"flip": 0.5}], "text": [{"word_dropout": 0.3}]}),
    ("image-audio", "heard", {"image": [{"erase": 0.5}], "audio": [{"mask_time": 8}, {"noise": 0.1}]}),
])  # fmt: skip
def test_own_data_are_augmented_as_what_they_are(
    name: str, data: str, changes: dict[str, Any], hub: Path, tmp_path: Path
) -> None:
    run = {"trackers": [], "stop_after": "cotrain"}
    recipe = documented(name, hub, hub / data, tmp_path, augment={"modalities": changes}, run=run)
    assert "augmentation: " in command("train", recipe, "--out", tmp_path / "run")
    words = ["image", "text"] if name == "image-text" else ["image", "audio"]
    for modality, other in (words, words[::-1]):
        swapped = {modality: [one for one in changes[other] if "noise" not in one]}
        wrong = documented(name, hub, hub / data, tmp_path / "wrong", augment={"modalities": swapped}, run=run)
        with pytest.raises(ConfigError, match=rf"is for {other}, and {modality} is {modality}; what fits it"):
            train(load(str(wrong)), tmp_path / "refused", _silent())


def test_where_time_lies_in_sounds_is_found(hub: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(documented("image-audio", hub, hub / "heard", tmp_path).read_text())
    material = Material(parse(content))
    times = {view.port.shape: material.task.forms[view.name].time
             for sight in material.teachers for view in sight.views}  # fmt: skip
    assert times == {(64, 32): -2, (1, 101, 16): -2}  # AST and CLAP put the bins last


def _silent() -> Any:
    from mstdistill.engine.progress import Screen

    return Screen(True)


def network(hub: Path, name: str, *kinds: str, **settings: Any) -> Any:
    """A tiny model with ports for these kinds of modalities."""
    chosen = ModelSettings(hf=str(hub / name), **settings)
    processing = [processing_of(chosen, kind, "model") for kind in kinds]
    with initialising(0, name):
        return build_pretrained(chosen, 3, processing, [p.port() for p in processing if p], "model")


def tokens(hub: Path, *texts: str) -> torch.Tensor:
    processing = Processing("text", str(hub / "bert"))
    return torch.stack([torch.from_numpy(processing(text)) for text in texts])


def test_pretrained_weights_and_named_seeds(hub: Path) -> None:
    import transformers

    reference = transformers.AutoModel.from_pretrained(hub / "bert")
    net = network(hub, "bert", "text")
    for name, x in reference.state_dict().items():
        assert torch.equal(x, net.model.state_dict()[name]), name
    again, random = network(hub, "bert", "text"), network(hub, "bert", "text", pretrained=False)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in net.state_dict().items())
    assert not torch.equal(random.model.encoder.layer[0].output.dense.weight,
                           net.model.encoder.layer[0].output.dense.weight)  # fmt: skip
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    shallow = network(hub, "bert", "text", pretrained=False, options={"num_hidden_layers": 2})
    assert len(shallow.model.encoder.layer) == 2


def test_padding_does_not_change_a_pooled_feature(hub: Path) -> None:
    net = network(hub, "bert", "text").eval()
    net.model.pooler = None  # the mean over tokens
    short, padded = Processing("text", str(hub / "bert"), max_length=7), Processing("text", str(hub / "bert"))
    views = [torch.from_numpy(p("the picture of a thing"))[None] for p in (short, padded)]
    with torch.no_grad():
        a, b = (net(view) for view in views)
    assert (a - b).abs().max() < 1e-6


def test_every_parameter_of_a_network_learns(hub: Path) -> None:
    """What takes no part in the logits would stall several processes that train together."""
    for name, kinds in (("clip", ("image", "text")), ("clap", ("audio",)), ("bert", ("text",)), ("ast", ("audio",))):
        net = network(hub, name, *kinds)
        net(*net.sample(2)).square().sum().backward()
        idle = [key for key, p in net.named_parameters() if p.requires_grad and p.grad is None]
        assert idle == [], name


def test_gradient_checkpointing_gives_the_same_gradients(hub: Path) -> None:
    grads = []
    for memory in (False, True):
        net = network(hub, "bert", "text", gradient_checkpointing=memory).train()
        torch.manual_seed(5)  # dropout
        net(tokens(hub, "a thing", "the round picture")).square().sum().backward()
        grads.append({name: p.grad for name, p in net.named_parameters()})
    assert all(torch.equal(x, grads[1][name]) for name, x in grads[0].items())


def test_compiled_forwards_never_run_where_taps_are(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from .toy import networks

    runs: list[str] = []

    def compiled(forward: Any, **_: Any) -> Any:
        def counted(*views: Any) -> Any:
            runs.append("compiled")
            return forward(*views)

        return counted

    monkeypatch.setattr(torch, "compile", compiled)
    student, _ = networks()
    student.compile()
    names = list(student.state_dict())
    view = torch.zeros(2, 6)
    with torch.no_grad():
        call(student, {"m1": view}, ("m1",))
        with hooked(student, {"fc1": lambda feature: feature + 1}, "student"):
            changed = call(student, {"m1": view}, ("m1",))
        discover(student, {"m1": view}, ("m1",), ("fc1",), "student")
        assert runs == ["compiled"]
        assert not torch.equal(changed, call(student, {"m1": view}, ("m1",)))
        call(copy.deepcopy(student), {"m1": view}, ("m1",))
    assert runs == ["compiled"] * 2
    assert list(student.state_dict()) == names


def ensemble_of(net: Any, taps: tuple[str, ...], views: dict[str, torch.Tensor]) -> Ensemble:
    teacher = Teacher("t", net, tuple(views), taps)
    shapes = discover(net, views, tuple(views), taps, "t")
    torch.manual_seed(0)
    masks = [plan_mask(tap, shapes[tap], hidden=3).build() for tap in taps]
    return Ensemble([teacher], [masks]).eval()


@torch.no_grad()
def test_attention_masks_of_the_old_batch_fall_back_to_separate_forwards(hub: Path) -> None:
    """A full first batch needs no attention mask, so one shared forward is right for it and fails for the next."""
    net = network(hub, "bert", "text")
    full = tokens(hub, *["the picture of a round thing " * 4] * 4)
    assert bool(full[:, 1].all())
    padded = tokens(hub, "a thing", "the picture", "of a lined thing", "round")
    for first in (full, padded):
        ensemble = ensemble_of(net, ("model.encoder.layer.2", "model.encoder.layer.5"), {"text": first})
        for batch in (first, padded[:1], padded, full):
            got = ensemble({"text": batch})
            want = torch.stack(ensemble._separately(0, [0, 1], {"text": batch}), dim=1)
            assert (got - want).abs().max() < 1e-5
        assert ensemble.shared == {0: False}


@torch.no_grad()
def test_taps_of_whole_submodules_and_of_both_towers(hub: Path) -> None:
    net = network(hub, "clip", "image", "text")
    views = dict(zip(("image", "text"), net.sample(3), strict=True))
    views["image"] += torch.randn(3, 3, 32, 32)
    taps = ("model.vision_model", "model.text_model.encoder.layers.0", "joined")
    ensemble = ensemble_of(net, taps, views)
    logits = ensemble(views)
    assert logits.shape == (3, 3, 3)
    plain = call(net, views, ("image", "text"))
    assert not torch.allclose(logits[:, 1], plain)
    assert not torch.allclose(logits[:, 2], plain)


def test_taps_are_listed(hub: Path) -> None:
    shown = command("taps", "--hf", hub / "clip", "--recipe")
    assert "taps: [joined, fc1]" in shown
    assert "tokens, h=" in shown
    shown = command("taps", "--hf", hub / "bert-classifier", "--num-classes", 3, "--recipe")
    assert "modalities: [text]" in shown
    assert "model.bert.encoder.layer.0" in shown


def test_prepared_tensors_go_into_a_model_of_one_modality(hub: Path) -> None:
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    settings = ModelSettings(hf=str(hub / "vit"), pretrained=False, options=shape)
    net = build_pretrained(settings, 3, [None], [Port("array", ("main",), (1, 8, 8))], "model")
    assert net(torch.zeros(5, 1, 8, 8)).shape == (5, 3)
    assert net.describe()["ports"][0]["kind"] == "array"


def refused(hub: Path, student: dict[str, Any], **teacher: Any) -> str:
    """The line that says no."""
    content = {
        "task": "own", "target": "image", "data": {"dir": str(hub / "captioned")}, "models": {"image": {
            "student": student,
            "teachers": [{"name": "t", "hf": str(hub / "bert"), "modalities": ["text"], **teacher}],
        }},
    }  # fmt: skip
    with pytest.raises(MstdistillError) as error:
        Material(parse(content)).networks(_silent())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mistakes_are_one_line(hub: Path, tmp_path: Path) -> None:
    good = {"hf": str(hub / "vit")}
    assert "give either backbone" in refused(hub, {"hf": "x", "backbone": "LeNet5"})
    assert "no folder ./nowhere" in refused(hub, {"hf": "./nowhere"})
    assert "HF_HUB_OFFLINE is set" in refused(hub, {"hf": "nobody/nothing"})
    assert "holds no image processor" in refused(hub, {"hf": str(hub / "bert")})
    assert "has no 'num_layers'; did you mean" in refused(hub, {**good, "options": {"num_layers": 1}})
    assert "takes 32; set max_length: 32" in refused(hub, good, max_length=40)
    assert "which a backbone can't take" in refused(hub, good, hf=None, backbone="LeNet5")
    assert "no modality 'txt'; did you mean text" in refused(hub, good, modalities=["txt"])
    assert "its head is new" in refused(hub, good, frozen=True)
    small = tiny_hub.bert(tmp_path / "small", vocabulary=7)
    assert "has 13 words, the model 7" in refused(hub, good, hf=small)
    fused = tiny_hub.clap(tmp_path / "fused", fused=True)
    with pytest.raises(ConfigError, match="fused CLAP"):
        network(Path(fused).parent, "fused", "audio")
    with pytest.raises(ConfigError, match="no tower for audio"):
        build_pretrained(ModelSettings(hf=str(hub / "clip")), 3, [None], [Processing("audio", str(hub / "ast")).port()],
                         "model")  # fmt: skip
