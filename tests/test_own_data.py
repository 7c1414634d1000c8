"""A user's own data: columns, splits, labels, views on disk, streaming; and looking data over before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import mstdistill
from mstdistill import MstdistillError
from mstdistill.cli import app
from mstdistill.config import DataSettings, parse
from mstdistill.data.prepared.views import make_view, open_views
from mstdistill.data.present import presence
from mstdistill.data.sources.own import open_own
from mstdistill.engine.progress import Screen
from mstdistill.errors import ConfigError, DataError

from . import tiny_hub


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSTDISTILL_HOME", str(tmp_path / "home"))


def saved(folder: Path, columns: dict[str, Any], **features: Any) -> str:
    """A `datasets` folder of these columns."""
    import datasets

    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict(columns)
    for name, feature in features.items():
        made = made.cast_column(name, feature)
    made.save_to_disk(str(folder))
    return str(folder)


def opened(location: str, *modalities: str, **settings: Any) -> tuple[Any, dict[str, Any]]:
    data = open_own(DataSettings(dir=location, **settings))
    views = [make_view(data, modality, None, "model") for modality in modalities]
    return data, open_views(data, views, group=0, limit=None, split="protocol", screen=Screen(True))


def everything(split: Any, *names: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    return split.fetch(np.arange(len(split)), list(names))


def arrays(count: int, seed: int = 0) -> dict[str, Any]:
    g = np.random.default_rng(seed)
    label = (np.arange(count) % 3).tolist()
    return {"wide": g.standard_normal((count, 2, 5)).tolist(), "narrow": g.standard_normal((count, 4)).tolist(),
            "age": list(range(count)), "label": label}  # fmt: skip


def test_arrays_come_as_they_are_and_are_cut_by_the_protocol(tmp_path: Path) -> None:
    columns = arrays(50)
    data, splits = opened(saved(tmp_path / "d", columns), "wide", "age", columns={"wide": "wide", "age": "age"})
    assert data.kinds == {"wide": "array", "age": "array"}
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [30, 10, 10]
    order = np.random.default_rng(19980427).permutation(50)[:30]
    views, label = everything(splits["train"], "wide", "age")
    assert torch.allclose(views["wide"], torch.tensor(columns["wide"])[order])
    assert views["age"][:, 0].tolist() == order.tolist()
    assert label.tolist() == [columns["label"][i] for i in order]


def test_rows_without_a_label_train_and_nothing_else(tmp_path: Path) -> None:
    """They are left out and counted, or kept for training alone; the labelled ones are cut as they would be alone."""
    columns = arrays(60)
    columns["label"] = [None if i % 2 else i % 3 for i in range(60)]
    location = saved(tmp_path / "d", columns)
    left, without = opened(location, "age", columns={"age": "age"})
    assert "30 instances have no label and are left out; data.unlabelled=learn" in " ".join(left.notes)
    _, learned = opened(location, "age", columns={"age": "age"}, unlabelled="learn")
    assert [len(learned[name]) for name in ("train", "validation", "test")] == [18 + 30, 6, 6]
    for name in ("train", "validation", "test"):
        views, label = everything(learned[name], "age")
        ages, known = views["age"][:, 0], label >= 0
        alone, its = everything(without[name], "age")
        assert ages[known].tolist() == alone["age"][:, 0].tolist()
        assert label[known].tolist() == its.tolist()
        assert (ages[~known] % 2 == 1).all()
        assert (~known).sum() == (30 if name == "train" else 0)


def test_splits_of_ones_own_keep_their_unlabelled_rows_for_training(tmp_path: Path) -> None:
    import datasets

    made = {}
    for split, count in (("train", 40), ("test", 10)):
        columns = arrays(count)
        columns["label"] = [i % 3 if i % 4 == 0 else -1 for i in range(count)]
        made[split] = datasets.Dataset.from_dict(columns)
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "d"))
    data, splits = opened(str(tmp_path / "d"), "age", columns={"age": "age"}, unlabelled="learn")
    assert "7 instances have no label and are left out" in " ".join(data.notes)
    label = {name: everything(split, "age")[1] for name, split in splits.items()}
    assert {name: (len(x), int((x < 0).sum())) for name, x in label.items()} == {
        "train": (38, 30), "validation": (2, 0), "test": (3, 0),
    }  # fmt: skip


def test_rows_may_lack_a_modality(tmp_path: Path) -> None:
    """Prepared with zeros and a column that says so; refused without the setting."""
    columns = arrays(60)
    columns["wide"] = [None if i % 3 == 0 else x for i, x in enumerate(columns["wide"])]
    columns["narrow"] = [[] if i % 4 == 0 else x for i, x in enumerate(columns["narrow"])]
    columns["age"] = [None if i == 5 else x for i, x in enumerate(columns["age"])]
    location = saved(tmp_path / "d", columns)
    wanted = {name: name for name in ("wide", "narrow", "age")}
    _, splits = opened(location, *wanted, columns=wanted, missing="allow")
    order = np.random.default_rng(19980427).permutation(60)[:36]
    there = {"wide": order % 3 != 0, "narrow": order % 4 != 0, "age": order != 5}
    found = presence(splits["train"])
    assert all(np.array_equal(values, there[name]) for name, values in found.items())
    assert {"wide", "narrow"} <= set(found)
    views, _ = everything(splits["train"], "wide", "narrow", "age")
    for name, values in there.items():
        assert (views[name][torch.from_numpy(~values)] == 0).all()
    assert torch.allclose(views["narrow"][torch.from_numpy(there["narrow"])],
                          torch.tensor([columns["narrow"][i] for i in order[there["narrow"]]]))  # fmt: skip
    with pytest.raises(DataError, match=r"instances can't be read, more than data.max_broken 0.02; the first: all/0"):
        opened(location, *wanted, columns=wanted)


def test_a_modality_that_no_row_has_is_refused(tmp_path: Path) -> None:
    columns = arrays(12)
    columns["wide"] = [[] for _ in range(12)]
    import datasets

    feature = datasets.List(datasets.List(datasets.Value("float32")))
    location = saved(tmp_path / "d", columns, wide=feature)
    with pytest.raises(DataError, match="no instance has 'wide'; leave it out of the recipe"):
        opened(location, "wide", "age", columns={"wide": "wide", "age": "age"}, missing="allow")


def test_a_registered_backbone_trains_on_raw_pictures(tmp_path: Path) -> None:
    from PIL import Image

    from mstdistill.pipeline import train

    g = np.random.default_rng(0)
    label = [i % 2 for i in range(60)]
    shown = [Image.fromarray((g.integers(0, 90, (28, 28)) + 120 * one).astype(np.uint8)) for one in label]
    heard = (g.standard_normal((60, 1, 32, 32)) + np.array(label)[:, None, None, None]).tolist()
    import datasets

    words = ["yes" if one else "no" for one in label]
    folder = saved(tmp_path / "d", {"seen": shown, "heard": heard, "answer": words}, seen=datasets.Image())
    teacher: dict[str, Any] = {"name": "heard", "modalities": ["heard"]}
    from mstdistill.backbones.catalogue import backbones

    teacher["backbone"] = next(name for name, b in backbones().items() if b.inputs == ((1, 32, 32),))
    recipe = parse({
        "task": "own", "target": "seen", "data": {"dir": folder, "label": "answer"}, "batch_size": 16,
        "models": {"seen": {"student": {"backbone": "LeNet5"}, "teachers": [teacher]}},
        "cotrain": {"epochs": 1}, "distill": {"epochs": 2, "lr": 1e-3}, "alone": {"enabled": False},
        "run": {"trackers": []},
    })  # fmt: skip
    result = train(recipe, tmp_path / "run", Screen(True))
    config = json.loads((tmp_path / "run" / "student" / "config.json").read_text())
    assert config["class_names"] == ["no", "yes"]
    assert config["input_shape"] == [1, 28, 28]
    assert result.summary["networks"][-1]["name"] == "distilled student"


def test_a_recipe_trains_where_sounds_are_missing(tmp_path: Path) -> None:
    """As above, of whose instances a third has no second modality, and two have no target."""
    import datasets
    from PIL import Image

    from mstdistill.pipeline import train

    g = np.random.default_rng(0)
    label = [i % 2 for i in range(60)]
    shown = [None if i in (7, 20) else Image.fromarray((g.integers(0, 90, (28, 28)) + 120 * one).astype(np.uint8))
             for i, one in enumerate(label)]  # fmt: skip
    heard = [None if i % 3 == 0 else x for i, x in enumerate(g.standard_normal((60, 1, 32, 32)).tolist())]
    folder = saved(tmp_path / "d", {"seen": shown, "heard": heard, "answer": label}, seen=datasets.Image())
    from mstdistill.backbones.catalogue import backbones

    teacher = {"name": "heard", "modalities": ["heard"],
               "backbone": next(name for name, b in backbones().items() if b.inputs == ((1, 32, 32),))}  # fmt: skip
    recipe = parse({
        "task": "own", "target": "seen", "data": {"dir": folder, "label": "answer", "missing": "allow"},
        "batch_size": 16, "models": {"seen": {"student": {"backbone": "LeNet5"}, "teachers": [teacher]}},
        "cotrain": {"epochs": 1}, "distill": {"epochs": 1, "lr": 1e-3}, "alone": {"enabled": False},
        "run": {"trackers": []},
    })  # fmt: skip
    result = train(recipe, tmp_path / "run", Screen(True))
    left = json.loads((tmp_path / "run" / "left_out.json").read_text())
    assert sum(map(len, left.values())) == 2
    assert all("(all/7)" in one or "(all/20)" in one for rows in left.values() for one in rows)
    present = result.summary["present"]
    assert present["instances"] == 36 - present["left_out"].get("train", 0)
    assert 0.5 < present["have"]["heard"] / present["instances"] < 0.85
    assert result.summary["networks"][-1]["name"] == "distilled student"
    with pytest.raises(ConfigError, match="modality_dropout is for teachers of several modalities"):
        parse(
            {
                **recipe.model_dump(),
                "models": {
                    "seen": {
                        "student": {"backbone": "LeNet5"},
                        "teachers": [{**teacher, "missing": "zero", "modality_dropout": 0.2}],
                    }
                },
            }
        )


def test_splits_of_a_repository_and_labels_that_are_kept_back(tmp_path: Path) -> None:
    import datasets

    parts = {"train": arrays(40), "dev": arrays(10, 1), "test": {**arrays(10, 2), "label": [-1] * 10}}
    datasets.disable_progress_bars()
    whole = datasets.DatasetDict({name: datasets.Dataset.from_dict(columns) for name, columns in parts.items()})
    whole.save_to_disk(str(tmp_path / "d"))
    data, splits = opened(str(tmp_path / "d"), "narrow")
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [32, 10, 8]
    assert "the test split has no labels" in data.notes[0]
    kept = {tuple(row.tolist()) for row in everything(splits["train"], "narrow")[0]["narrow"]}
    assert not kept & {tuple(row.tolist()) for row in everything(splits["test"], "narrow")[0]["narrow"]}
    validation, _ = everything(splits["validation"], "narrow")
    assert torch.allclose(validation["narrow"], torch.tensor(parts["dev"]["narrow"]))


def test_streamed_data_are_the_same(tmp_path: Path) -> None:
    import datasets

    made = datasets.Dataset.from_dict({**arrays(30), "label": [None, *([0, 1, 2] * 10)[1:]]})
    folder = tmp_path / "d"
    folder.mkdir()
    made.to_parquet(str(folder / "train.parquet"))
    streamed, parts = opened(str(folder), "wide", streaming=True)
    assert streamed.streaming
    assert len(streamed.items) == 29
    _, others = opened(str(folder), "wide")
    for name in parts:
        (a, label), (b, same) = everything(parts[name], "wide"), everything(others[name], "wide")
        assert torch.equal(a["wide"], b["wide"])
        assert torch.equal(label, same)
    rows = streamed.rows
    again = [rows.decoded(("all", position), "wide") for position in (7, 20, 3)]
    assert np.allclose(again, np.array(arrays(30)["wide"])[[7, 20, 3]])


def test_a_table_of_paths_is_pictures_and_sounds(tmp_path: Path) -> None:
    """Another file is other data; an empty cell is missing; words that only end like files stay words."""
    from scripts.shapes_and_tones import make

    make(tmp_path, count=12, heard=0.6)
    table = tmp_path / "labels.csv"
    head, *rows = table.read_text().splitlines()
    said = [f"{head},words,gone", *(f"{row},file.wav,no-such-folder/{i}.png" for i, row in enumerate(rows))]
    table.write_text("\n".join(said))
    data = open_own(DataSettings(dir=str(table), label="kind", missing="allow"))
    assert data.kinds == {"picture": "image", "sound": "audio", "words": "text", "gone": "text"}
    assert data.rows.decoded(("all", 3), "picture").size == (32, 32)
    lacking = [data.rows.absent(("all", i), "sound") for i in range(12)]
    assert lacking == [not row.split(",")[1] for row in rows]
    assert 0 < sum(lacking) < 12
    samples, rate = data.rows.decoded(("all", lacking.index(False)), "sound")
    assert (len(samples), rate) == (8000, 16_000)
    (tmp_path / "pictures/0003.png").write_bytes((tmp_path / "pictures/0004.png").read_bytes() + b"more")
    again = open_own(DataSettings(dir=str(table), label="kind", missing="allow"))
    assert again.fingerprint != data.fingerprint
    (tmp_path / "pictures/0005.png").unlink()
    with pytest.raises(DataError, match=r"picture of all/5: .*0005.png"):
        open_own(DataSettings(dir=str(table), label="kind")).rows.decoded(("all", 5), "picture")


def test_broken_pictures_and_sounds_are_named(tmp_path: Path) -> None:
    import datasets

    sound = tiny_hub.tone(440, np.random.default_rng(0))
    file = [{"bytes": sound, "path": None}] * 5 + [{"bytes": b"RIFF1234", "path": None}]
    folder = saved(tmp_path / "d", {"sound": file, "label": [0, 1] * 3}, sound=datasets.Audio())
    data = open_own(DataSettings(dir=folder))
    samples, rate = data.first("sound")
    assert rate == tiny_hub.RATE
    assert len(samples) == tiny_hub.RATE // 2
    with pytest.raises(DataError, match="sound of all/5: not a readable wav file"):
        data.rows.decoded(("all", 5), "sound")


def test_pictures_of_several_sizes_are_refused_where_nothing_resizes_them(tmp_path: Path) -> None:
    import datasets
    from PIL import Image

    shown = [Image.new("RGB", (20 + i % 2, 20)) for i in range(10)]
    folder = saved(tmp_path / "d", {"seen": shown, "label": [0, 1] * 5}, seen=datasets.Image())
    with pytest.raises(DataError, match=r"data.max_broken 0.02.*seen has shape \[3, 20, 21\].*all of one size"):
        opened(folder, "seen")


def test_compressed_sounds_are_decoded(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from mstdistill.data.decode.sound import decode_audio

    wave = (0.3 * np.sin(np.arange(16000) / 16000 * 2 * np.pi * 440)).astype(np.float32)
    path = tmp_path / "a.flac"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray((wave * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    samples, rate = decode_audio({"bytes": None, "path": str(path)}, "a")
    assert rate == 16000
    assert np.abs(samples - wave).max() < 1e-3


@pytest.mark.parametrize(("settings", "words"), [
    ({"label": "lable"}, "no column 'lable' for the classes (data.label); did you mean label"),
    ({"columns": {"seen": "picture"}}, "no column 'picture'"),
    ({"columns": {"key": "wide"}}, "choose another name"),
    ({"label": "score"}, "classes are whole numbers or words"),
    ({"label": "same"}, "holds 1 different values; classes are wanted"),
])  # fmt: skip
def test_mistakes_are_one_line(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "d", {**arrays(9), "score": [0.5] * 9, "same": ["a"] * 9})
    with pytest.raises(MstdistillError) as error:
        open_own(DataSettings(dir=folder, **settings))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_data_that_are_not_there(tmp_path: Path) -> None:
    for location, words in (
        (str(tmp_path / "none"), "there is no"),
        ("hub:nobody/nothing@small", "HF_HUB_OFFLINE is set"),
        (None, "data.dir=FOLDER"),
    ):
        with pytest.raises(DataError) as error:
            open_own(DataSettings(dir=location))
        assert words in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        mstdistill.train(mstdistill.load("av-mnist", ["data.dir=hub:nobody/prepared"]), tmp_path / "run")


def test_a_published_prepared_task_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from mstdistill.data.sources.published import open_splits
    from mstdistill.data.sources.registry import find_task

    task = find_task("av-digits")
    task.prepare(tmp_path / "repo", Screen(True))  # type: ignore[misc]
    asked: list[Any] = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path / "repo")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    splits = open_splits(task, "hub:org/digits")
    assert asked == [("org/digits", {"repo_type": "dataset"})]
    assert len(splits["train"]) == 1078


def test_checking_finds_what_is_wrong(tmp_path: Path) -> None:
    columns = arrays(60)
    columns["wide"][3][0][0] = float("nan")
    columns["narrow"][7] = [1.0, 2.0]
    folder = saved(tmp_path / "bad", columns)
    result = CliRunner().invoke(app, ["check", folder, "--out", str(tmp_path / "figures.json")])
    assert result.exit_code == 2
    assert "wide: 1 instances hold NaN" in result.output
    assert "narrow: shapes vary from [2] to [4]" in result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["modalities"]["wide"]["with_nan"] == 1
    assert figures["label"]["classes"] == {"0": 20, "1": 20, "2": 20}
    result = CliRunner().invoke(app, ["check", saved(tmp_path / "good", arrays(60))])
    assert result.exit_code == 0, result.output
    assert "usable" in result.output


def test_checking_says_how_complete_data_are(tmp_path: Path) -> None:
    import datasets

    columns = arrays(40)
    columns["wide"] = [None if i % 4 == 0 else x for i, x in enumerate(columns["wide"])]
    location = saved(tmp_path / "d", columns)
    refused = mstdistill.check(location)
    assert not refused.usable
    assert "learn from what is there (data.missing=allow, --allow-missing)" in refused.wrong[0]
    allowed = mstdistill.check(location, missing="allow")
    assert allowed.usable
    assert allowed.figures["modalities"]["wide"]["present"] == 0.75
    assert allowed.figures["rows"]["complete"] == 30
    assert any(text.startswith("10 of 40 instances lack a modality") for text in allowed.odd)
    shown = CliRunner().invoke(app, ["check", location, "--allow-missing"])
    assert shown.exit_code == 0
    assert "75.0 %" in shown.output
    rows = [{"a": np.ones(3), "b": None if i % 2 else np.ones(2), "label": i % 3} for i in range(20)]
    assert mstdistill.check(rows, missing="allow").figures["modalities"]["b"]["present"] == 0.5
    feature = datasets.List(datasets.Value("float32"))
    nobody = mstdistill.check(saved(tmp_path / "n", {**columns, "wide": [[]] * 40}, wide=feature), missing="allow")
    assert any(text.startswith("wide: no instance has it") for text in nobody.wrong)


def test_checking_pictures_sounds_and_texts(tmp_path: Path) -> None:
    import datasets

    raw = tiny_hub.rows(24, sound=True)
    quiet = np.zeros(4000, np.int16)
    from io import BytesIO

    from scipy.io import wavfile

    silence = BytesIO()
    wavfile.write(silence, 16000, quiet)
    raw["audio"][2] = {"bytes": silence.getvalue(), "path": None}
    raw["image"][5] = raw["image"][4]
    raw["text"] = ["", *["a thing"] * 23]
    raw["image"] = [None if i == 9 else image for i, image in enumerate(raw["image"])]
    folder = saved(tmp_path / "d", raw, audio=datasets.Audio(), image=datasets.Image())
    report = mstdistill.check(folder)
    found = report.figures["modalities"]
    assert found["audio"]["constant"] == 1
    assert found["audio"]["sample_rates"] == {"16000": 24}
    assert found["audio"]["shape"] == [8000]
    assert found["image"]["duplicates"] == 1
    assert found["image"]["missing"] == 1
    assert found["text"]["empty"] == 1
    assert any("1 missing" in text for text in report.wrong)  # above 2 %
    assert any("silent" in text for text in report.odd)


def test_checking_a_torch_data_set_and_a_prepared_folder(tmp_path: Path) -> None:
    class Sensors(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 30

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"radar": torch.full((4,), float(i)), "label": i % 3}

    part = Sensors()
    report = mstdistill.check({"train": part, "test": part})
    assert report.usable
    assert any("30 of test are in train as well" in text for text in report.odd)
    assert "30 of test" in str(report)
    prepared = tmp_path / "home" / "av-digits-v1"
    from mstdistill.data.sources.registry import find_task

    find_task("av-digits").prepare(prepared, Screen(True))  # type: ignore[misc]
    report = mstdistill.check(prepared, rows=50)
    assert report.usable
    assert set(report.figures["modalities"]) == {"image", "audio"}
    assert report.figures["splits"] == {"train": 50, "validation": 50, "test": 50}
