"""Students on the Hugging Face Hub, beside a stand-in of it on the loopback address; no network."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from torch import nn
from typer.testing import CliRunner

from mstdistill import MstdistillError, Student
from mstdistill.backbones.catalogue import build
from mstdistill.backbones.pretrained import build_pretrained
from mstdistill.backbones.saved import form_of
from mstdistill.card import published
from mstdistill.cli import app
from mstdistill.config import ModelSettings
from mstdistill.data.decode.processors import Processing
from mstdistill.data.task import Task
from mstdistill.errors import ConfigError, HubError
from mstdistill.files import write_tensors
from mstdistill.state import state_of
from mstdistill.student import export_student

from . import tiny_hub
from .conftest import MLP
from .hub_stand_in import TOKEN, StandIn, stand_in

FIGURES = {"accuracy": 0.875, "average_accuracy": 0.85, "weighted_f1": 0.86, "kappa": 0.8, "loss": 0.4}
SUMMARY: dict[str, Any] = {
    "task": "own", "target": "seen", "seed": 0, "routing_share": {},
    "networks": [{"name": "student alone", "validation": FIGURES | {"accuracy": 0.5}, "test": FIGURES},
                 {"name": "distilled student", "validation": FIGURES, "test": FIGURES | {"accuracy": 0.75}}],
}  # fmt: skip
WRONG = "hf_someWrongToken"


def point_at(patch: pytest.MonkeyPatch, address: str, cache: Path, token: str | None = TOKEN) -> None:
    """The Hub's client of this process, which reads the environment once."""
    constants = huggingface_hub.constants
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(cache / "tokens"))
    patch.delenv("HF_HUB_OFFLINE", raising=False)
    patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    if token is None:
        patch.delenv("HF_TOKEN", raising=False)
    else:
        patch.setenv("HF_TOKEN", token)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with stand_in() as found:
        point_at(monkeypatch, found.address, tmp_path / "cache")
        yield found


def exported(folder: Path, module: nn.Module, view: str, shape: tuple[int, ...], maker: Any, data: str | None = None
             ) -> Path:  # fmt: skip
    task = Task("own", "a test", {view: shape}, 3, class_names=tiny_hub.CLASSES)
    return export_student(folder, module, task, view, maker, SUMMARY, data)


def digits(folder: Path, data: str | None = None) -> Path:
    torch.manual_seed(0)
    maker = {"backbone": "LeNet5", "options": {}, "hf": None}
    return exported(folder, build("LeNet5", 3), "seen", (1, 28, 28), maker, data)


def hugging(folder: Path, kind: str, head: str = "auto") -> Any:
    """A tiny ViT, BERT or AST that classifies, or a BERT or CLIP under a head of this package."""
    makers: dict[str, Any] = {"image": tiny_hub.vit, "audio": tiny_hub.ast, "clip": tiny_hub.clip}
    made = makers[kind](folder) if kind in makers else tiny_hub.bert(folder, head == "auto", layers=2)
    processing = Processing("image" if kind == "clip" else kind, made)
    settings = ModelSettings(hf=made, pretrained=head != "auto", head=head)
    return build_pretrained(settings, 3, [processing], [processing.port()], "student").eval()


def raw(kind: str) -> list[Any]:
    """Three pictures, texts or sounds."""
    if kind == "text":
        return ["a round thing", "the picture of a lined thing", "empty"]
    if kind == "audio":
        g = np.random.default_rng(0)
        return [(g.standard_normal(8000).astype(np.float32), tiny_hub.RATE) for _ in range(3)]
    found: list[Any] = tiny_hub.rows(3)["image"]
    return found


def line_of(error: MstdistillError) -> str:
    assert "\n" not in str(error)
    assert WRONG not in str(error)
    assert TOKEN not in str(error)
    return str(error)


# There and back


def test_what_is_pushed_is_what_is_loaded(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student.from_pretrained(digits(tmp_path / "student", "hub:org/data@small"))
    address = student.push_to_hub("org/digits", private=True, license="mit")
    assert address == f"{hub.address}/org/digits"
    assert set(hub.files("org/digits")) == {"README.md", "config.json", "model.safetensors"}
    assert hub.repositories["org/digits"].private
    loaded = Student.from_pretrained("org/digits")
    batch = torch.rand(4, 1, 28, 28)
    assert torch.equal(loaded(batch), student(batch))
    assert loaded.config == student.config

    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", loaded.card or "", re.DOTALL)
    assert '"org/digits"' in code
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["classes"].shape == (1,)


def test_the_card_says_what_was_measured(hub: StandIn, tmp_path: Path) -> None:
    Student.from_pretrained(digits(tmp_path / "student", "hub:org/data@small")).push_to_hub("org/digits", license="mit")
    path = tmp_path / "README.md"
    path.write_bytes(hub.files("org/digits")["README.md"])
    facts = ModelCard.load(path).data
    assert (facts.license, facts.datasets, facts.library_name) == ("mit", ["org/data"], "mstdistill")
    assert facts.base_model is None
    assert "knowledge-distillation" in facts.tags
    assert facts.model_name == "digits"
    found = {(one.dataset_split, one.metric_type): one.metric_value for one in facts.eval_results}
    assert found["validation", "accuracy"] == 0.875
    assert found["test", "accuracy"] == 0.75
    assert len(found) == 2 * len(FIGURES)
    # read and written once more it stays
    assert ModelCard(str(ModelCard.load(path))).data.to_dict() == facts.to_dict()
    assert huggingface_hub.metadata_load(path)["model-index"][0]["name"] == "digits"


def test_a_card_of_an_older_version_is_made_fit(tmp_path: Path) -> None:
    old = ('---\nlibrary_name: mstdistill\ntags: [knowledge-distillation, cross-modal]\n---\n\n# A student\n\n'
           '```python\nstudent = Student.from_pretrained("this folder")\n```\n')  # fmt: skip
    new = ModelCard(published(old, "org/name"))
    assert new.data.license == "other"
    assert new.data.tags == ["knowledge-distillation", "cross-modal"]
    assert 'from_pretrained("org/name")' in new.text
    assert ModelCard(published("# No metadata\n", "org/name", "mit")).data.license == "mit"


def test_only_what_loading_reads_is_fetched(hub: StandIn, tmp_path: Path) -> None:
    folder = digits(tmp_path / "student")
    for name in ("onnx/model.onnx", "onnx/config.json", "model-fp16.safetensors", "export.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    (folder / "weights.bin").write_bytes(b"a pickle")
    done = CliRunner().invoke(app, ["push", str(folder), "org/digits", "--private"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "onnx/model.onnx" in hub.files("org/digits")
    assert "weights.bin" not in hub.files("org/digits")
    hub.files("org/digits")["pytorch_model.bin"] = b"a pickle"
    Student.from_pretrained("org/digits")
    fetched = {line.rpartition("/")[2] for line in hub.asked if line.startswith("GET") and "/resolve/" in line}
    assert fetched == {"README.md", "config.json", "model.safetensors"}


def test_revisions_are_kept_apart(hub: StandIn, tmp_path: Path) -> None:
    first = Student.from_pretrained(digits(tmp_path / "student"))
    first.push_to_hub("org/digits")
    commit = hub.repositories["org/digits"].branches["main"]
    second = Student.from_pretrained(tmp_path / "student")
    with torch.no_grad():
        next(second.parameters()).add_(1.0)
    second.push_to_hub("org/digits", revision="later")
    batch = torch.rand(2, 1, 28, 28)
    for revision, student in (("main", first), (commit, first), ("later", second), (None, first)):
        assert torch.equal(Student.from_pretrained("org/digits", revision=revision)(batch), student(batch))
    with pytest.raises(HubError, match="org/digits has no branch, tag or commit 'never'"):
        Student.from_pretrained("org/digits", revision="never")


def test_a_network_of_ones_own(hub: StandIn) -> None:
    student = Student(MLP(6, 12, 8, 3), {"modality": "seen", "num_classes": 3})
    student.push_to_hub("org/mine")
    batch = torch.rand(4, 6)
    assert torch.equal(Student.from_pretrained("org/mine", module=MLP(6, 12, 8, 3))(batch), student(batch))
    with pytest.raises(ConfigError, match="org/mine is a network of your own"):
        Student.from_pretrained("org/mine")


def test_offline_takes_the_cache(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student.from_pretrained(digits(tmp_path / "student"))
    student.push_to_hub("org/digits")
    Student.from_pretrained("org/digits")
    asked = len(hub.asked)
    batch = torch.rand(2, 1, 28, 28)
    assert torch.equal(Student.from_pretrained("org/digits", local_files_only=True)(batch), student(batch))
    with pytest.raises(HubError, match="org/other: it isn't whole in the cache, and local_files_only"):
        Student.from_pretrained("org/other", local_files_only=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(Student.from_pretrained("org/digits")(batch), student(batch))
    with pytest.raises(HubError, match="org/other: it isn't whole in the cache, and HF_HUB_OFFLINE is set"):
        Student.from_pretrained("org/other")
    with pytest.raises(HubError, match="org/digits: HF_HUB_OFFLINE is set; unset it"):
        student.push_to_hub("org/digits")
    assert len(hub.asked) == asked


# Mistakes: one line


def test_a_refused_token(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = Student.from_pretrained(digits(tmp_path / "student"))
    student.push_to_hub("org/digits", private=True)
    for act in (lambda: student.push_to_hub("org/new", token=WRONG),
                lambda: Student.from_pretrained("org/digits", token=WRONG)):  # fmt: skip
        with pytest.raises(HubError, match="the Hub refuses the token") as caught:
            act()
        line_of(caught.value)
    assert set(hub.repositories) == {"org/digits"}
    with pytest.raises(HubError, match="the token may not write there"):
        student.push_to_hub("others/new")
    with pytest.raises(HubError, match="the token is empty or holds what no token holds") as caught:
        student.push_to_hub("org/new", token=f"{WRONG}\nX-Header: 1")
    line_of(caught.value)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="there is no token; set HF_TOKEN"):
        student.push_to_hub("org/new")
    with pytest.raises(HubError, match="neither such a folder nor, for this token, such a repository"):
        Student.from_pretrained("org/digits")


def test_a_command_with_a_wrong_token_is_one_line(hub: StandIn, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    digits(tmp_path / "run" / "student")
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_TOKEN": WRONG, "HF_HUB_OFFLINE": "0",
                   "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[1])}  # fmt: skip
    command = [sys.executable, "-m", "mstdistill", "push", str(tmp_path / "run"), "org/digits"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("mstdistill: org/digits: the Hub refuses the token")
    assert WRONG not in line
    assert hub.tokens == {WRONG}
    assert not [x for x in tmp_path.rglob("*") if x.is_file() and WRONG.encode() in x.read_bytes()]
    assert hub.repositories == {}


def test_a_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in() as gone:
        point_at(monkeypatch, gone.address, tmp_path / "cache")
    student = Student.from_pretrained(digits(tmp_path / "student"))
    with pytest.raises(HubError, match="org/new: the Hub can't be reached at http://127") as caught:
        student.push_to_hub("org/new", token=WRONG)
    line_of(caught.value)
    with pytest.raises(HubError, match="it isn't in the cache, and the Hub can't be reached at http://127") as caught:
        Student.from_pretrained("org/digits", token=WRONG)
    line_of(caught.value)


@pytest.mark.parametrize("name", ["digits", "org/a/b", "org/two--dashes", "org/.hidden", "org/é"])
def test_names_that_the_hub_refuses(name: str, hub: StandIn) -> None:
    with pytest.raises(ConfigError, match="org/name"):
        Student(MLP(6, 12, 8, 3), {"num_classes": 3}).push_to_hub(name)
    assert hub.asked == []


def test_what_the_checker_refuses_is_not_pushed(hub: StandIn, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the Hub refuses the card of org/digits: .*license.* must be one of"):
        Student.from_pretrained(digits(tmp_path / "student")).push_to_hub("org/digits", license="none of these")
    assert hub.repositories == {}


def test_folders_and_repositories_without_a_student(hub: StandIn, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no exported student"):
        Student.from_pretrained(str(tmp_path / "nothing"))
    tiny_hub.vit(tmp_path / "vit")
    with pytest.raises(ConfigError, match="holds no student of mstdistill"):
        Student.from_pretrained(tmp_path / "vit")
    with pytest.raises(HubError, match="org/nothing: there is neither such a folder nor"):
        Student.from_pretrained("org/nothing")
    done = CliRunner().invoke(app, ["push", str(tmp_path), "org/name"])
    assert "no finished run and no exported student" in str(done.exception)
    (tmp_path / "config.json").write_text("{}")
    done = CliRunner().invoke(app, ["push", str(tmp_path), "org/name"])
    assert "holds no weights to load again" in str(done.exception)


# As transformers takes it


@pytest.mark.parametrize(("kind", "auto", "task"), [
    ("image", "AutoModelForImageClassification", "image-classification"),
    ("text", "AutoModelForSequenceClassification", "text-classification"),
    ("audio", "AutoModelForAudioClassification", "audio-classification"),
])  # fmt: skip
def test_a_classifier_is_a_folder_of_transformers(
    kind: str, auto: str, task: str, hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = hugging(tmp_path / "base", kind)
    maker = {"backbone": None, "options": {}, "hf": "org/base", "pretrained": True}
    folder = exported(tmp_path / "student", module, f"{kind}@view", module.ports[0].shape, maker)
    student = Student.from_pretrained(folder)
    view = student.view(raw(kind))
    with torch.no_grad():
        logits = student(view)
        assert torch.equal(logits, module(view))
        theirs = getattr(transformers, auto).from_pretrained(folder)
        assert torch.equal(theirs(**module.ports[0].unpack(view)).logits, logits)
    answers = transformers.pipeline(task, model=str(folder), top_k=3)
    one = raw(kind)[0]
    (found,) = answers([{"raw": one[0], "sampling_rate": one[1]} if kind == "audio" else one])
    scores = {answer["label"]: answer["score"] for answer in found}
    probable = dict(zip(tiny_hub.CLASSES, logits[0].softmax(0).tolist(), strict=True))
    assert scores == pytest.approx(probable, abs=1e-5)

    # of its own: transformers remembers a repository's commit as long as the process lives
    name = f"org/sees-{kind}"
    student.push_to_hub(name)
    facts = ModelCard(hub.files(name)["README.md"].decode()).data
    assert (facts.base_model, facts.library_name, facts.pipeline_tag) == ("org/base", "transformers", task)
    loaded = Student.from_pretrained(name)
    with torch.no_grad():
        assert torch.equal(loaded(loaded.view(raw(kind))), logits)
    if kind == "audio":
        return
    monkeypatch.chdir(tmp_path)
    if kind == "image":
        one.save("picture.png")
    for code in re.findall(r"```python\n(.*?)```", loaded.card or "", re.DOTALL):
        exec(code, {})


def test_a_model_without_a_head_lies_beside_it(hub: StandIn, tmp_path: Path) -> None:
    module = hugging(tmp_path / "base", "text", "pooled")
    assert form_of(module) == "subfolder"
    maker = {"backbone": None, "options": {}, "hf": "org/base", "pretrained": True}
    folder = exported(tmp_path / "student", module, "text@view", module.ports[0].shape, maker)
    student = Student.from_pretrained(folder)
    view = student.view(raw("text"))
    theirs = transformers.AutoModel.from_pretrained(folder / "transformers")
    with torch.no_grad():
        assert torch.equal(student(view), module(view))
        feature = theirs(**module.ports[0].unpack(view)).pooler_output
        assert torch.equal(module.classifier(feature), student(view))
        student.push_to_hub("org/pooled")
        assert torch.equal(Student.from_pretrained("org/pooled")(view), student(view))


def test_one_of_two_towers_goes_there_and_back(hub: StandIn, tmp_path: Path) -> None:
    module = hugging(tmp_path / "base", "clip", "two-tower")
    assert form_of(module) == "plain"
    maker = {"backbone": None, "options": {}, "hf": "org/base", "pretrained": True}
    student = Student.from_pretrained(
        exported(tmp_path / "student", module, "image@view", module.ports[0].shape, maker)
    )
    student.push_to_hub("org/tower")
    view = student.view(raw("image"))
    with torch.no_grad():
        assert torch.equal(Student.from_pretrained("org/tower")(view), module(view))


def test_folders_of_older_versions_load(tmp_path: Path) -> None:
    """All weights in one file, config and processor in a subfolder, the config without a word on it."""
    module = hugging(tmp_path / "base", "image")
    folder = tmp_path / "student"
    module.save_files(folder / "transformers")
    write_tensors(folder / "model.safetensors", state_of(module))
    config = {"task": "own", "modality": "image", "input_shape": [3, 32, 32], "num_classes": 3, "ignore_index": None,
              "class_names": [], "backbone": None, "options": {},
              "hf": {"model": "x", **module.describe()}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    student = Student.from_pretrained(folder)
    view = student.view(raw("image"))
    with torch.no_grad():
        assert torch.equal(student(view), module(view))
        again = student.save_pretrained(tmp_path / "again")
        theirs = transformers.AutoModelForImageClassification.from_pretrained(again)
        assert torch.equal(theirs(view).logits, student(view))


def test_an_exported_classifier_is_a_folder_of_transformers(tmp_path: Path) -> None:
    module = hugging(tmp_path / "base", "image")
    maker = {"backbone": None, "options": {}, "hf": "org/base", "pretrained": True}
    folder = exported(tmp_path / "student", module, "image@view", module.ports[0].shape, maker)
    Student.from_pretrained(folder).export(tmp_path / "out", ["safetensors"], ["none", "fp16"], rows=4)
    view = Student.from_pretrained(folder).view(raw("image"))
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    half = Student.from_pretrained(tmp_path / "out", file="model-fp16.safetensors")
    with torch.no_grad():
        assert torch.equal(theirs(view).logits, module(view))
        assert torch.allclose(half(view), module(view), atol=1e-2)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    module = hugging(tmp_path / "base", "image")
    maker = {"backbone": None, "options": {}, "hf": "org/base", "pretrained": True}
    folder = exported(tmp_path / "student", module, "image@view", module.ports[0].shape, maker)
    write_tensors(folder / "model.safetensors", {"classifier.weight": torch.zeros(3, 24)}, {"format": "pt"})
    with pytest.raises(ConfigError, match="weights of another network"):
        Student.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ConfigError, match=r"there is no .*model\.safetensors"):
        Student.from_pretrained(folder)
