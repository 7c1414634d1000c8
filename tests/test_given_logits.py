"""Teachers that are only logits: written from a run, read beside the instances, and refused where they don't fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mstdistill import config
from mstdistill.data.given_logits import GivenLogits, WithLogits, view_of
from mstdistill.errors import ConfigError, DataError
from mstdistill.pipeline import train
from mstdistill.write_logits import write

from .conftest import Command, make_split, refused

SHORT = ["cotrain.epochs=1", "specialise.epochs=1", "distill.epochs=1", "alone.enabled=false", "data.limit=120",
         "run.trackers=[]", "run.page=false"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logits") / "run"
    train(config.load("av-digits", SHORT), folder)
    return folder


def with_teacher(folder: Path, **teacher: Any) -> list[str]:
    """Overrides: the recipe's first teacher, and one that is its logits."""
    both = {"name": "both", "backbone": "digits-both", "modalities": ["image", "audio"], "taps": ["fc1"]}
    return [
        *SHORT,
        f"models.image.teachers={yaml.safe_dump([both, {'name': 'gpt', **teacher}], default_flow_style=True)}",
    ]


def test_a_runs_teacher_teaches_another_run_from_its_file(run: Path, tmp_path: Path) -> None:
    file = write(run, "audio", None, [], tmp_path / "audio.safetensors")
    found = train(config.load("av-digits", with_teacher(tmp_path, logits=str(file))), tmp_path / "next")
    rows = {entry["name"]: entry for entry in found.summary["networks"]}
    before = {entry["name"]: entry for entry in json.loads((run / "summary.json").read_text())["networks"]}
    for split in ("validation", "test"):  # the same network, looked at again
        assert rows["teacher gpt"][split] == pytest.approx(before["teacher audio"][split], abs=1e-6)
    assert "gpt" in found.summary["routing_share"]
    again = train(config.load("av-digits", with_teacher(tmp_path, logits=str(file))), tmp_path / "next")
    assert again.summary["networks"] == found.summary["networks"]


def test_the_largest_classes_alone_are_nearly_all(run: Path, tmp_path: Path) -> None:
    whole, few = (write(run / "student", "student", "av-digits", ["data.limit=120"], tmp_path / f"{top}.safetensors",
                        top) for top in (None, 4))  # fmt: skip
    exact = GivenLogits(str(whole), "teacher").rows("train", np.arange(71), 10).softmax(1)
    sparse = GivenLogits(str(few), "teacher").rows("train", np.arange(71), 10).softmax(1)
    top = exact.topk(4, dim=1).indices
    torch.testing.assert_close(sparse.gather(1, top), exact.gather(1, top), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sparse.sum(1), torch.ones(71))
    assert few.stat().st_size < whole.stat().st_size


def test_logits_of_the_training_data_alone_teach_and_are_judged_by_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "some.npy", np.random.default_rng(0).standard_normal((71, 10)).astype(np.float16))
    overrides = [*with_teacher(tmp_path, logits=str(tmp_path / "some.npy")), "routing.rule=product"]
    found = train(config.load("av-digits", overrides), tmp_path / "run")
    rows = {entry["name"]: entry for entry in found.summary["networks"]}
    assert "validation" not in rows["teacher gpt"]
    assert "validation" in rows["teacher both"]
    assert "| teacher gpt | –" in (tmp_path / "run" / "summary.md").read_text()


def test_a_modality_can_be_a_teachers_logits(tmp_path: Path) -> None:
    from mstdistill import Teacher, distill
    from mstdistill.teachers.given import Given

    from . import toy

    student, teachers = toy.networks()

    class Scored:
        def __init__(self, count: int, seed: int) -> None:
            self.split = make_split(count, seed=seed)

        def __len__(self) -> int:
            return len(self.split)

        def __getitem__(self, at: int) -> dict[str, Any]:
            inputs, label = self.split.fetch(np.array([at]), ["m1", "m2"])
            scores = torch.nn.functional.one_hot(label[0], 3) * 4.0
            return {**{name: x[0] for name, x in inputs.items()}, "scores": scores, "label": int(label[0])}

    teacher = Teacher("scores", Given(), ("scores",))
    found = distill(student, [*teachers, teacher], Scored(60, 1), Scored(30, 2), "m1", out=tmp_path / "run", quiet=True,
                    settings=toy.SETTINGS)  # fmt: skip
    rows = {entry["name"]: entry for entry in found.summary["networks"]}
    assert rows["teacher scores"]["validation"]["accuracy"] == 1.0


def save(path: Path, **tensors: torch.Tensor) -> str:
    save_file({name.replace("__", "."): x for name, x in tensors.items()}, path)
    return str(path)


@pytest.mark.parametrize(("tensors", "words"), [
    ({"train": torch.zeros(11, 3)}, r"shape \[11, 3\]; the data have 12 instances"),
    ({"train": torch.zeros(12, 4)}, r"\[12, 4\] float32; wanted are \[12, 3\] floating numbers"),
    ({"train": torch.zeros(12, 3, dtype=torch.int64)}, r"\[12, 3\] int64"),
    ({"train": torch.full((12, 3), float("nan"))}, r"row 0 \(instance 0\): NaN"),
    ({"logits": torch.zeros(12, 3)}, r"has no tensor 'train' \[N, C\]; it has logits"),
    ({"train__values": torch.zeros(12, 2) - 3, "train__indices": torch.tensor([[0, 0]] * 12)}, r"or one twice"),
    ({"train__values": torch.zeros(12, 2), "train__indices": torch.tensor([[0, 1]] * 12)}, r"probabilities over 1"),
    ({"train__values": torch.zeros(12, 2) - 3, "train__indices": torch.tensor([[0, 3]] * 12)}, r"outside 0\.\.2"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(DataError, match=words):
        WithLogits(
            make_split(12, seed=1), "train", {"gpt": GivenLogits(save(tmp_path / "f.safetensors", **tensors), "gpt")}, 3
        )


def test_logits_of_other_data_are_refused(run: Path, tmp_path: Path) -> None:
    file = write(run, "audio", None, [], tmp_path / "audio.safetensors")
    overrides = [*with_teacher(tmp_path, logits=str(file)), "data.limit=200"]
    with pytest.raises(DataError, match=r"train: logits of other data, or of another cut of them"):
        train(config.load("av-digits", overrides), tmp_path / "other")


def test_rows_lie_beside_their_instances(tmp_path: Path) -> None:
    table = torch.randn(12, 3)
    split = WithLogits(
        make_split(12, seed=1), "train", {"a b": GivenLogits(save(tmp_path / "f.safetensors", train=table), "x")}, 3
    )
    index = np.array([7, 0, 7])
    inputs, label = split.fetch(index, ["m1", view_of("a b")])
    torch.testing.assert_close(inputs[view_of("a b")], table[[7, 0, 7]])
    assert torch.equal(label, make_split(12, seed=1).fetch(index, [])[1])
    assert inputs.keys() == {"m1", view_of("a b")}
    assert load_file(tmp_path / "f.safetensors").keys() == {"train"}


@pytest.mark.parametrize(("teacher", "words"), [
    ({"logits": "f.npy", "taps": ["fc1"]}, ["taps", "no features to mask"]),
    ({"logits": "f.npy", "backbone": "digits-image"}, ["backbone", "leave one of the two out"]),
    ({"logits": "nowhere.safetensors"}, ["nowhere.safetensors", "can't be read"]),
    ({"logits": "f.csv"}, ["f.csv"]),
    ({"backbone": "digits-image"}, ["modalities", "at least one"]),
])  # fmt: skip
def test_mistakes_in_a_recipe_are_one_line(
    command: Command, tmp_path: Path, teacher: dict[str, Any], words: list[str]
) -> None:
    refused(command("train", "av-digits", *with_teacher(tmp_path, **teacher), "--out", str(tmp_path / "run")), *words)


def test_mistakes_of_the_command_are_one_line(command: Command, run: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "x.safetensors")]
    refused(command("logits", str(tmp_path), *out), "no finished run")
    refused(command("logits", str(run), "--network", "nobody", *out), "nobody", "both")
    refused(command("logits", str(run / "student"), *out), "name the recipe")
    refused(command("logits", str(run), "--out", str(tmp_path / "x.npy")), "written as .safetensors")
    with pytest.raises(ConfigError, match="a recipe goes with an exported student"):
        write(run, "student", "av-digits", [], tmp_path / "x.safetensors")
