"""Steps that data sets share: sound against librosa, video, faces, tweets, pictures, feature files."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstdistill.data.decode.faces import Faces
from mstdistill.data.decode.features import read_features
from mstdistill.data.decode.picture import read_rgb
from mstdistill.data.decode.sound import read_channels, read_sound
from mstdistill.data.decode.spectra import fit_length, mfcc, vggish_patches
from mstdistill.data.decode.tweet import normalise_tweet
from mstdistill.data.decode.video import count_frames, evenly_spaced, read_at, read_frames
from mstdistill.errors import ConfigError, DataError

from . import publishers

GOLDEN = Path(__file__).parent / "golden"


def test_mfcc_are_librosas() -> None:
    """librosa 0.11's figures for this sound, to 2e-6 of the largest."""
    rate, count = 22050, int(3.6 * 22050)
    time = np.arange(count) / rate
    wave = 0.4 * np.sin(2 * np.pi * (200 + 300 * time) * time) + 0.1 * np.sin(2 * np.pi * 3000 * time) * (time > 1.2)
    wave[:4000] = 0
    wanted = np.load(GOLDEN / "librosa_mfcc.npy")
    found = mfcc(torch.from_numpy(wave.astype(np.float32)), rate, 15).numpy()
    assert found.shape == (15, 156)
    assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()


def test_sound_is_padded_at_the_end_and_cropped_at_both() -> None:
    wave = torch.arange(10.0)
    assert fit_length(wave, 12).tolist() == [*range(10), 0, 0]
    assert fit_length(wave, 7).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert vggish_patches(torch.randn(16000 * 3), 10).shape == (10, 96, 64)
    assert vggish_patches(torch.zeros(1), 2).unique().numel() == 1


def test_video(tmp_path: Path) -> None:
    sound = publishers.tone(2.0, 16000, 440, 0)
    path = tmp_path / "clip.mp4"
    publishers.write_video(path, 20, (48, 64), seed=1, rate=10, sound=sound)
    frames = read_frames(path)
    assert len(frames) == count_frames(path) == 20
    assert frames[0].shape == (48, 64, 3)
    some = read_frames(path, [3, 19, 25])
    assert np.array_equal(some[0], frames[3])
    assert np.array_equal(some[1], frames[19])
    assert len(some) == 2
    at = read_at(path, [0.0, 0.55, 1.95, 7.0])
    assert all(np.array_equal(a, frames[i]) for a, i in zip(at, (0, 5, 19, 19), strict=True))
    heard, _ = read_sound(path, 16000)
    assert abs(len(heard) - 32000) < 3000
    assert 0.1 < np.abs(heard).max() < 1.2
    assert evenly_spaced(15, 108)[:3] == [3, 10, 17]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"clip.mp4: (not a readable video|damaged|no frame)"):
        read_frames(path)


def test_faces(tmp_path: Path) -> None:
    frame = np.zeros((40, 60, 3), dtype=np.uint8)
    frame[:, 10:50] = 200
    (crop,) = Faces("centre").crop([frame], 20)
    assert crop.shape == (20, 20, 3)
    assert int(crop.min()) == 200  # the middle square and nothing else
    faces = Faces("opencv")
    assert Faces("auto").how == "opencv"
    boxes = iter([None, (5, 5, 25, 25), None])
    faces._find = lambda _: next(boxes)  # type: ignore[method-assign]
    marked = frame.copy()
    marked[5:25, 5:25] = (9, 0, 0)
    crops = faces.crop([frame, marked, marked], 20)
    assert int(crops[0].min()) == 200  # none found yet: the middle
    assert np.array_equal(crops[1], crops[2])  # none found: the last one's box
    assert crops[1][0, 0].tolist() == [9, 0, 0]
    assert Faces("opencv")._find(np.random.default_rng(0).integers(0, 255, (360, 640, 3), dtype=np.uint8)) is None
    with pytest.raises(ConfigError, match="auto, opencv or centre"):
        Faces("mtcnn")


def test_feature_files_hold_arrays_and_nothing_else(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((10, 128))
    for protocol in range(2, 6):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(values, protocol))
        assert np.allclose(read_features(tmp_path / "a.pkl"), values)
    np.save(tmp_path / "a.npy", values)
    assert np.allclose(read_features(tmp_path / "a.npy"), values)

    class Evil:
        def __reduce__(self) -> Any:
            return print, ("ran",)

    for content, why in ((pickle.dumps(Evil()), "builtins.print"), (pickle.dumps([1]), "a list"),
                         (pickle.dumps(np.array([None])), "no array"), (b"", "EOF|Ran out")):  # fmt: skip
        (tmp_path / "b.pkl").write_bytes(content)
        with pytest.raises(DataError, match=why):
            read_features(tmp_path / "b.pkl")


def test_tweets_read_as_bertweets_corpus(tmp_path: Path) -> None:
    from transformers import BertweetTokenizer

    (tmp_path / "vocab.txt").write_text("<s> 1\n")
    (tmp_path / "bpe.codes").write_text("#version: 0.2\n")
    reference = BertweetTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"), normalization=True)
    for tweet in (
        "RT @user: I can't believe it's 5 p.m. already…", "We're  here, cannot leave! don’t go 😢 #Irma www.cnn.com",
        "ain't it?? They've said they'd go @CNN: http://example.com/x", "HELP!!! :( he'll be ok :-) 10 a.m. ",
    ):  # fmt: skip
        assert normalise_tweet(tweet) == reference.normalizeTweet(tweet)
    assert normalise_tweet(r"caf\u00e9 \ud83d\ude22 fire https://t.co/abc") == "café :crying_face: fire"
    assert normalise_tweet("https://t.co/abc") == ""


def test_images_of_any_kind_become_rgb(tmp_path: Path) -> None:
    from PIL import Image

    colour = Image.new("RGB", (4, 4), (10, 200, 30))
    for mode, name in (("L", "a.jpg"), ("CMYK", "b.jpg"), ("P", "c.png"), ("RGBA", "d.png"), ("I;16", "e.png")):
        image = Image.new("I;16", (4, 4), 77) if mode == "I;16" else colour.convert(mode)
        image.save(tmp_path / name)
        assert read_rgb(tmp_path / name).mode == "RGB"
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.save(tmp_path / "f.png")
    assert read_rgb(tmp_path / "f.png").getpixel((0, 0)) == (255, 255, 255)
    (tmp_path / "g.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    with pytest.raises(DataError, match="not a readable image"):
        read_rgb(tmp_path / "g.jpg")


def test_wav_files_with_remarks_are_whole_and_cut_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    publishers.write_wav(path, np.linspace(-0.5, 0.5, 1000), 8000)
    whole, _ = read_channels(path)
    content = path.read_bytes()
    remark = b"note" + (6).to_bytes(4, "little") + b"remark"
    path.write_bytes(b"RIFF" + (len(content) - 8 + len(remark)).to_bytes(4, "little") + content[8:] + remark)
    assert np.array_equal(read_channels(path)[0], whole)
    assert np.array_equal(read_channels(io.BytesIO(path.read_bytes()), "row 3")[0], whole)
    path.write_bytes(content[:-500])
    with pytest.raises(DataError, match=r"a.wav: not a readable wav file"):
        read_channels(path)
    with pytest.raises(DataError, match=r"row 3: not a readable wav file"):
        read_channels(io.BytesIO(b"RIFF...."), "row 3")
