"""Preparing: what is read from publishers' files, resuming to the same bytes, broken and misplaced files."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from mstdistill.data.prepared import build as building
from mstdistill.data.prepared.build import build
from mstdistill.data.prepared.plan import SOURCES, Column, Item, Plan
from mstdistill.data.prepared.store import PreparedSplit, read_card
from mstdistill.data.sources.published import open_splits
from mstdistill.data.sources.registry import find_task
from mstdistill.engine.progress import Screen
from mstdistill.errors import CheckpointError, DataError

from . import publishers
from .conftest import Command, refused

QUIET = Screen(quiet=True)
SMALL_SHARDS = """
from mstdistill import cli
from mstdistill.data.prepared import build
build.SHARD_ROWS = (4, 4)
if __name__ == "__main__":
    cli.main()
"""


class Reader:
    """Row i: an image of i, as float and as bytes; `broken` ones can't be read."""

    def __init__(self, broken: tuple[int, ...] = (), stop: int | None = None) -> None:
        self.broken, self.stop, self.read = broken, stop, 0

    def __call__(self, i: int) -> dict[str, Any]:
        self.read += 1
        if i == self.stop:
            raise KeyboardInterrupt
        if i in self.broken:
            raise DataError(f"file {i} is damaged")
        image = np.full((3, 4, 4), i % 200, dtype=np.uint8)
        image[0] //= 2
        return {"image": image, "sound": np.linspace(-i, i + 1, 5), SOURCES: {f"{i}.png": f"{i:064x}"}}


def plan(count: int, read: Reader, **settings: Any) -> Plan:
    columns = {"image": Column((3, 4, 4), "uint8", "channel", 0), "sound": Column((5,), "float16", "global")}
    return Plan("toy", 1, columns, [Item(f"item {i}", i, i % 3, i % 2 * 2) for i in range(count)], read, settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "SHARD_ROWS", (8, 8))


@pytest.mark.parametrize("stop", [0, 7, 8, 30, 49])
def test_an_interrupted_build_ends_with_the_same_bytes(stop: int, small_shards: None, tmp_path: Path) -> None:
    broken = (9, 31)
    whole = build(tmp_path / "whole", plan(50, Reader(broken)), QUIET, 1, 0.1)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "again", plan(50, Reader(broken, stop)), QUIET, 1, 0.1)
    assert not (tmp_path / "again").exists()
    rest = Reader(broken)
    again = build(tmp_path / "again", plan(50, rest), QUIET, 1, 0.1)
    assert rest.read == 50 - stop // 8 * 8  # finished shards aren't read again
    assert contents(whole) == contents(again)
    shutil.rmtree(again)
    assert contents(whole) == contents(build(tmp_path / "again", plan(50, Reader(broken)), QUIET, 2, 0.1))


@pytest.mark.parametrize("name", ["all/state.json", "card.json"])
def test_killed_while_it_is_sealed(
    name: str, small_shards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(tmp_path / "whole", plan(20, Reader()), QUIET, 1)
    with monkeypatch.context() as patch:

        def stop(path: Path, text: str) -> None:
            if str(path).endswith(name):
                raise KeyboardInterrupt
            path.write_text(text)

        patch.setattr(building, "write_text", stop)
        patch.setattr("mstdistill.data.prepared.shards.write_text", stop)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "again", plan(20, Reader()), QUIET, 1)
    again = Reader()
    assert contents(build(tmp_path / "again", plan(20, again), QUIET, 1)) == contents(whole)
    assert again.read == 0


def test_killed_and_gone_on_with(tmp_path: Path) -> None:
    """The real command, two workers, SIGKILL at moments that come later each time."""
    raw = publishers.ravdess(tmp_path / "raw", clips=24, size=(48, 64))
    words = [sys.executable, "-c", SMALL_SHARDS, "prepare", "ravdess", "--source", str(raw), "--faces", "centre",
             "--workers", "2", "--out"]  # fmt: skip
    started = time.monotonic()
    subprocess.run([*words, str(tmp_path / "whole")], check=True, capture_output=True)
    length = time.monotonic() - started
    kills, begun = 0, time.time()
    while not (tmp_path / "again").exists():
        with subprocess.Popen([*words, str(tmp_path / "again")], stdout=subprocess.DEVNULL) as process:
            try:
                process.wait(timeout=(0.4 + 0.2 * kills) * length)
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
    assert kills > 0
    time.sleep(0.5)
    assert not [
        p
        for p in psutil.process_iter(["cmdline", "ppid"])
        if p.info["ppid"] == 1 and "spawn_main" in str(p.info["cmdline"]) and p.create_time() > begun
    ]  # no worker outlives its parent
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_rows_scaling_card_and_sources(small_shards: None, tmp_path: Path) -> None:
    folder = build(tmp_path / "out", plan(50, Reader((9, 31))), QUIET, 1, 0.1)
    card = read_card(folder)
    split = PreparedSplit(folder, "all", card)
    assert len(split) == 48
    rows = np.array([8, 47, 0, 9])
    kept = [i for i in range(50) if i not in (9, 31)]
    inputs, label = split.fetch(rows, ["image", "sound"])
    assert label.tolist() == [kept[i] % 3 for i in rows]
    wanted = torch.tensor([kept[i] for i in rows], dtype=torch.float32)
    assert torch.equal(inputs["image"][:, 1, 0, 0], wanted / 49)
    assert torch.equal(inputs["image"][:, 0, 2, 3], (wanted / 2).floor() / 24)
    assert torch.allclose(inputs["sound"][:, 0], (49 - wanted) / 99, atol=1e-3)
    assert inputs["sound"].dtype == inputs["image"].dtype == torch.float32
    assert card["modalities"]["image"]["statistics"]["max"] == [24.0, 49.0, 49.0]
    assert json.loads((folder / "broken.json").read_text()) == [[f"item {i}", f"file {i} is damaged"] for i in (9, 31)]
    listed = (folder / "sources.tsv").read_text().splitlines()
    assert len(listed) == 49
    assert listed[1] == f"0.png\t{0:064x}"
    import datasets

    opened = datasets.load_from_disk(str(folder / "all"))
    assert opened[9]["key"] == "item 10"


def test_too_many_broken_then_mended(small_shards: None, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"4 of 50 instances.*item 0: file 0 is damaged.*broken.json"):
        build(tmp_path / "out", plan(50, Reader((0, 1, 2, 20))), QUIET, 1, 0.06)
    mended = Reader()
    folder = build(tmp_path / "out", plan(50, mended), QUIET, 1)
    assert read_card(folder)["splits"]["all"]["rows"] == 50
    assert mended.read < 50


def test_a_folder_is_bound_to_its_settings(tmp_path: Path) -> None:
    folder = build(tmp_path / "out", plan(10, Reader(), faces="centre"), QUIET, 1)
    untouched = Reader()
    build(folder, plan(10, untouched, faces="centre"), QUIET, 1)
    assert untouched.read == 0
    with pytest.raises(DataError, match=r"prepared otherwise .--faces."):
        build(folder, plan(10, Reader(), faces="opencv"), QUIET, 1)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "half", plan(10, Reader(stop=3)), QUIET, 1)
    with pytest.raises(DataError, match=r"half.partial was begun with other settings or files .items."):
        build(tmp_path / "half", plan(11, Reader()), QUIET, 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(DataError, match="holds something else already"):
        build(tmp_path / "mine", plan(10, Reader()), QUIET, 1)
    with pytest.raises(DataError, match="no instances found"):
        build(tmp_path / "none", plan(0, Reader()), QUIET, 1)


def test_two_processes_prepare_once(small_shards: None, tmp_path: Path) -> None:
    from threading import Thread

    readers = Reader(), Reader()
    threads = [Thread(target=build, args=(tmp_path / "out", plan(200, reader), QUIET, 1)) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reader.read for reader in readers) == [0, 200]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.prepare.json"]


def test_values_that_float16_cannot_hold(tmp_path: Path) -> None:
    class Large(Reader):
        def __call__(self, i: int) -> dict[str, Any]:
            return {**super().__call__(i), "sound": np.full(5, 7e4 if i == 3 else 1.0)}

    folder = build(tmp_path / "out", plan(10, Large()), QUIET, 1, 0.5)
    assert "too large for float16" in json.loads((folder / "broken.json").read_text())[0][1]


def test_a_full_disk_loses_nothing(small_shards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    real, written = building.write_shard, []

    def full(path: Path, *rest: Any) -> Any:
        written.append(path)
        if len(written) == 3:
            raise CheckpointError(f"disk full while saving {path}") from OSError(errno.ENOSPC, "No space left")
        return real(path, *rest)

    monkeypatch.setattr(building, "write_shard", full)
    with pytest.raises(CheckpointError, match="disk full"):
        build(tmp_path / "out", plan(50, Reader()), QUIET, 1)
    rest = Reader()
    build(tmp_path / "out", plan(50, rest), QUIET, 1)
    assert rest.read == 34


def test_ravdess(tmp_path: Path, command: Command) -> None:
    raw = publishers.ravdess(tmp_path / "raw", clips=17, size=(48, 64))
    (raw / "Audio_Speech" / "Actor_02" / "03-01-01-01-01-01-02.wav").unlink()
    damaged = raw / "Video_Speech" / "Actor_01" / "01-01-03-01-01-01-01.mp4"
    damaged.write_bytes(damaged.read_bytes()[:500])
    silent = raw / "Audio_Speech" / "Actor_01" / "03-01-05-01-01-01-01.wav"
    publishers.write_wav(silent, np.zeros(48000), 48000)
    words = ("prepare", "ravdess", "--source", raw, "--out", tmp_path / "out", "--faces", "centre", "--workers", 2)
    refused(command(*words), "2 of 16 instances can't be read", "not a readable video", "--max-broken 0.02")
    code, shown, err = command(*words, "--max-broken", 0.2)
    assert (code, err) == (0, "")
    assert "1 files have no partner" in shown
    card = read_card(tmp_path / "out")
    assert card["without_partner"] == ["Video_Speech/Actor_02/01-01-01-01-01-01-02.mp4"]
    assert [why.split(": ")[1] for _, why in json.loads((tmp_path / "out" / "broken.json").read_text())][1] == (
        "nothing but silence"
    )
    split = PreparedSplit(tmp_path / "out", "all", card)
    inputs, label = split.fetch(np.arange(len(split)), ["video", "audio"])
    assert inputs["video"].shape == (14, 15, 3, 224, 224)
    assert inputs["audio"].shape == (14, 15, 156)
    assert float(inputs["audio"].amin()) == 0
    assert float(inputs["audio"].amax()) == 1
    assert label.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 6, 7, 7]  # in name order; 2 and 4 lost one each
    refused(command("prepare", "ravdess", "--source", tmp_path / "out", "--out", tmp_path / "b"), "no pairs of RAVDESS")
    refused(command("prepare", "ravdess"), "--source DIR")


def test_vggsound_from_extracted_features(tmp_path: Path, command: Command) -> None:
    raw = publishers.vggsound_features(tmp_path / "raw", clips=12)
    words = ("prepare", "vggsound-50k", "--source", raw, "--out", tmp_path / "out", "--workers", 1)
    table = raw / "vggsound-avel50k.csv"
    kept = table.read_text()
    table.write_text(kept.replace("video_id", "name"))
    refused(command(*words), "no column 'video_id'")
    table.write_text(kept + "kind 9,Clip0000003,0,10,train\n")
    refused(command(*words), "Clip0000003 is listed twice")
    table.write_text(kept)
    assert command(*words)[0] == 0
    task = find_task("vggsound-50k")
    splits = open_splits(task, str(tmp_path / "out"), split="publisher")
    assert {name: len(split) for name, split in splits.items()} == {"train": 6, "validation": 3, "test": 3}
    inputs, _ = open_splits(task, str(tmp_path / "out"))["train"].fetch(np.arange(7), ["visual", "audio"])
    assert inputs["visual"].shape == (7, 10, 7, 7, 512)
    assert 0 <= float(inputs["visual"].min()) < float(inputs["visual"].max()) <= 1
    refused(command(*words[:3], tmp_path / "out", *words[4:5], tmp_path / "b"), "0 csv files")


def test_crisismmd(tmp_path: Path, command: Command) -> None:
    raw = publishers.crisismmd(tmp_path / "raw", tweets=20)
    encoders = ("--image-encoder", publishers.image_encoder(tmp_path / "resnet", 2048), "--text-encoder",
                publishers.text_encoder(tmp_path / "bert"))  # fmt: skip
    words = ("prepare", "crisismmd-v2", "--source", raw, "--out", tmp_path / "out", "--workers", 1)
    table = raw / "crisismmd_datasplit_all" / "task_humanitarian_text_img_dev.tsv"
    kept = table.read_text()
    table.write_text(kept.replace("tweet_text", "words", 1))
    refused(command(*words, *encoders), "no column 'tweet_text'")
    table.write_text(kept.replace("injured_or_dead_people", "injured", 1))
    refused(command(*words, *encoders), "line 2: label 'injured' is not one of the eight classes")
    table.unlink()
    refused(command(*words, *encoders), "no task_humanitarian_text_img_dev.tsv")
    table.write_text(kept)
    refused(command(*words, "--text-encoder", "vinai/bertweet-base"), "without a network, download")
    shutil.rmtree(tmp_path / "out.partial")
    assert command(*words, *encoders)[0] == 0
    card = read_card(tmp_path / "out")
    assert card["repeated_tweets_left_out"] == 1
    splits = open_splits(find_task("crisismmd-v2"), str(tmp_path / "out"), split="publisher")
    assert {name: len(split) for name, split in splits.items()} == {"train": 12, "validation": 4, "test": 4}
    inputs, label = splits["test"].fetch(np.arange(4), ["image", "text"])
    assert inputs["image"].shape == (4, 2048)
    assert inputs["text"].shape == (4, 768)
    with (table.parent / "task_humanitarian_text_img_test.tsv").open() as file:
        names = [row["label"] for row in csv.DictReader(file, delimiter="\t")]
    assert [card["classes"][i] for i in label.tolist()] == names


@pytest.mark.parametrize("labels40", ["key", "file", "mapping"])
def test_nyu_depth(labels40: str, tmp_path: Path, command: Command) -> None:
    import h5py

    raw = publishers.nyu_depth(tmp_path / "raw", scenes=5, labels40=labels40)
    assert command("prepare", "nyu-depth-v2", "--source", raw, "--out", tmp_path / "out", "--workers", 1)[0] == 0
    card = read_card(tmp_path / "out")
    split = PreparedSplit(tmp_path / "out", "all", card)
    inputs, label = split.fetch(np.array([2, 4]), ["rgb", "depth"])
    with h5py.File(raw / "nyu_depth_v2_labeled.mat") as file:
        image, depth, fine = (np.asarray(file[key][2]) for key in ("images", "depths", "labels"))
    low, high = (np.array(card["modalities"]["rgb"]["scale"][key])[:, None, None] for key in ("low", "high"))
    assert np.allclose(inputs["rgb"][0].numpy(), (image.transpose(0, 2, 1) - low) / (high - low), atol=1e-6)
    scale = card["modalities"]["depth"]["scale"]
    assert np.allclose(
        inputs["depth"][0, 0], (depth.T - scale["low"][0]) / (scale["high"][0] - scale["low"][0]), atol=1e-6
    )
    assert np.array_equal(label[0], fine.T // (20 if labels40 == "mapping" else 1))
    assert len(open_splits(find_task("nyu-depth-v2"), str(tmp_path / "out"), split="publisher")["test"]) == 2


def test_nyu_depth_names_what_is_wrong(tmp_path: Path, command: Command) -> None:
    import h5py

    raw = publishers.nyu_depth(tmp_path / "raw", scenes=2)
    mat = raw / "nyu_depth_v2_labeled.mat"
    words = ("prepare", "nyu-depth-v2", "--source", raw, "--out", tmp_path / "out")
    refused(command(*words, "--size", "50x60"), "multiples of 32")
    with h5py.File(mat, "a") as file:
        file["colours"] = file.pop("images")[:]
    refused(command(*words), "no key 'images'")
    with h5py.File(mat, "a") as file:
        file["images"] = file.pop("colours")[:, :, :32, :32]
    refused(command(*words), "[N, 3, 640, 480]")
    with h5py.File(mat, "a") as file:
        del file["labels40"]
    refused(command(*words), "put labels40.mat or classMapping40.mat beside it")
    mat.write_bytes(b"MATLAB 5.0")
    refused(command(*words), "not a readable HDF5 .mat")
    mat.unlink()
    refused(command(*words), "no nyu_depth_v2_labeled.mat")


def test_what_a_kill_left_half_written_is_gone_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        (tmp_path / "out.partial" / "all").mkdir(parents=True, exist_ok=True)
        (tmp_path / "out.partial" / "all" / ".data-00000-of-00001.arrow.0123abcd.tmp").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building, "_seal", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "out", plan(6, Reader()), Screen(quiet=True), 1)
    folder = build(tmp_path / "out", plan(6, Reader()), Screen(quiet=True), 1)
    assert not list(folder.rglob(".*"))
    assert len(PreparedSplit(folder, "all", read_card(folder))) > 0
