"""Prepared data: round trips, av-digits' promises, AV-MNIST from files in their publishers' formats."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from mstdistill.data.decode.spectra import min_max, square_spectrogram
from mstdistill.data.prepared import store
from mstdistill.data.sources import av_digits, av_mnist
from mstdistill.data.sources.published import open_splits
from mstdistill.data.sources.registry import find_task
from mstdistill.engine.progress import Screen
from mstdistill.errors import DataError

from .publishers import fsdd, mnist


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return av_digits.prepare(tmp_path_factory.mktemp("data") / "av-digits")


def test_av_digits_splits_share_nothing(digits: Path) -> None:
    splits = open_splits(find_task("av-digits"), str(digits))
    columns = {name: {c: split.columns[c].take(torch.arange(len(split))).numpy() for c in ("source", "voice", "label")}
               for name, split in splits.items()}  # fmt: skip
    assert sum(len(c["source"]) for c in columns.values()) == 1797
    for key in ("source", "voice"):
        sets = [set(c[key].tolist()) for c in columns.values()]
        assert all(not (a & b) for i, a in enumerate(sets) for b in sets[i + 1 :]), key
    assert len(set(np.concatenate([c["source"] for c in columns.values()]).tolist())) == 1797
    inputs, label = splits["train"].fetch(np.array([3, 0]), ["image", "audio"])
    assert inputs["image"].shape == (2, 1, 8, 8)
    assert inputs["audio"].shape == (2, 1, 32, 32)
    assert 0 <= float(inputs["image"].min()) <= float(inputs["image"].max()) <= 1
    assert label.dtype == torch.int64
    card = store.read_card(digits)
    assert "GPL-3.0" in card["sources"]["audio"]


def test_av_digits_again_is_the_same(digits: Path, tmp_path: Path) -> None:
    again = store.read_card(av_digits.prepare(tmp_path / "again"))
    assert again["splits"] == store.read_card(digits)["splits"]


def test_store_round_trip_over_several_shards(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"a": rng.random((50, 2, 3)).astype(np.float16), "label": rng.integers(0, 3, 50)}
    store.write(tmp_path / "d", {"all": columns}, {"task": "x"})
    split = store.PreparedSplit(tmp_path / "d", "all", store.read_card(tmp_path / "d"))
    rows = rng.permutation(50)[:20]
    inputs, label = split.fetch(rows, ["a"])
    assert torch.equal(inputs["a"], torch.from_numpy(columns["a"][rows]).float())
    assert torch.equal(label, torch.from_numpy(columns["label"][rows]))
    column = split.columns["a"]
    column.parts = [column.parts[0][:7], column.parts[0][7:31], column.parts[0][31:]]
    column.starts = np.array([0, 7, 31, 50])
    assert np.array_equal(column.take(torch.from_numpy(rows)).numpy(), columns["a"][rows])
    with pytest.raises(DataError, match="no modality 'b'"):
        split.fetch(rows, ["b"])


def test_store_refuses_lengths_that_differ_and_notices_damage(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="modality lengths differ"):
        store.write(tmp_path / "d", {"all": {"a": np.zeros((3, 2)), "label": np.zeros(4, int)}}, {})
    assert not (tmp_path / "d").exists()
    store.write(tmp_path / "d", {"all": {"a": np.zeros((3, 2)), "label": np.zeros(3, int)}}, {"task": "x"})
    card = store.read_card(tmp_path / "d")
    arrow = next((tmp_path / "d" / "all").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[: arrow.stat().st_size // 2])
    with pytest.raises(DataError, match=r"prepare the data again"):
        store.PreparedSplit(tmp_path / "d", "all", card)
    with pytest.raises(DataError, match="holds no prepared data"):
        store.read_card(tmp_path / "nowhere")


@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 40_000))
def test_spectrogram_is_square_for_any_length(length: int) -> None:
    picture = square_spectrogram(torch.rand(length), 112)
    assert picture.shape == (112, 112)
    assert torch.isfinite(picture).all()


def test_constant_instances_become_zero_and_are_counted() -> None:
    scaled, constant = min_max(np.stack([np.full((2, 2), 7.0), np.arange(4.0).reshape(2, 2)]))
    assert constant == 1
    assert scaled[0].max() == 0
    assert (scaled[1].min(), scaled[1].max()) == (0, 1)


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    """MNIST and Free Spoken Digit files of their real formats, small."""
    return mnist(tmp_path / "mnist"), fsdd(tmp_path / "fsdd")


def test_av_mnist_from_its_publishers_files(sources: tuple[Path, Path], tmp_path: Path) -> None:
    images_at, sounds_at = sources
    noise = tmp_path / "noise"
    noise.mkdir()
    for k in range(5):
        wavfile.write(
            noise / f"1-100-A-{k}.wav", 44100, (np.random.default_rng(k).standard_normal(44100) * 9000).astype(np.int16)
        )
    folder = av_mnist.prepare(tmp_path / "out", Screen(quiet=True), str(images_at), str(sounds_at), str(noise))
    task = find_task("av-mnist")
    splits = open_splits(task, str(folder))
    assert {name: len(split) for name, split in splits.items()} == {"train": 168, "validation": 56, "test": 56}
    inputs, label = splits["train"].fetch(np.arange(4), ["image", "audio"])
    assert inputs["image"].shape == (4, 1, 28, 28)
    assert inputs["audio"].shape == (4, 1, 112, 112)
    assert 0 <= float(inputs["audio"].min()) <= float(inputs["audio"].max()) <= 1
    assert label.max() <= 9
    other = open_splits(task, str(folder), group=1)["train"]
    assert other.fingerprint != splits["train"].fingerprint
    card = json.loads((folder / "card.json").read_text())
    assert "six sevenths" in card["note"]
    assert len(open_splits(task, str(folder), limit=100)["test"]) == 20


def test_av_mnist_names_what_is_wrong_with_its_files(sources: tuple[Path, Path], tmp_path: Path) -> None:
    images_at, sounds_at = sources

    given = {"mnist": str(images_at), "fsdd": str(sounds_at)}

    def refuses(words: str, **change: str) -> None:
        with pytest.raises(DataError, match=words):
            av_mnist.prepare(tmp_path / "out", Screen(quiet=True), **{**given, **change})
        assert not (tmp_path / "out").exists()

    images, labels = images_at / "t10k-images-idx3-ubyte.gz", images_at / "t10k-labels-idx1-ubyte.gz"
    refuses("no MNIST files", mnist=str(tmp_path))
    refuses("no Free Spoken Digit recordings", fsdd=str(tmp_path))
    with pytest.raises(DataError, match="--mnist DIR --fsdd DIR"):
        av_mnist.prepare(tmp_path / "out", Screen(quiet=True))
    kept = images.read_bytes(), labels.read_bytes()
    images.write_bytes(kept[1])
    labels.write_bytes(kept[0])
    refuses("swapped files")
    images.write_bytes(kept[0][: len(kept[0]) // 2])
    labels.write_bytes(kept[1])
    refuses("truncated or damaged")
    raw = gzip.decompress(kept[0])
    images.write_bytes(gzip.compress(raw[:-5]))
    refuses("truncated")
    labels.unlink()
    refuses("t10k-labels-idx.* is missing")
    images.write_bytes(kept[0])
    labels.write_bytes(kept[1])
    (sounds_at / "3_theo_0.wav").write_bytes(b"RIFF....")
    refuses("not a readable wav file")
    for path in sounds_at.glob("*_yweweler_0.wav"):
        path.unlink()
    refuses("3_theo_0|no recording of digit . by yweweler")
