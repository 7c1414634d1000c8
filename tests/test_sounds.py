"""Sounds of every coding, type and shape: the mean of the channels as float32, or one line that names the row."""

from __future__ import annotations

import builtins
import io
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile

from mstdistill.data.decode.sound import decode_audio, read_channels, read_sound
from mstdistill.data.decode.spectra import resample
from mstdistill.errors import ConfigError, DataError, MstdistillError

RATE = 16000
LEFT = (0.3 * np.sin(np.arange(RATE) / 10)).astype(np.float32)
RIGHT = (0.5 * np.sin(np.arange(RATE) / 7)).astype(np.float32)
BOTH = np.stack([LEFT, RIGHT])
MEAN = BOTH.mean(axis=0)
SHORT = (MEAN * 32767).astype(np.int16)


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, rate, samples)
    return file.getvalue()


def coded(
    codec: str, kind: str, channels: Sequence[np.ndarray] = BOTH, layout: str = "stereo", rate: int = RATE
) -> bytes:
    """A file by FFmpeg."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.stack(channels), format="fltp", layout=layout)
        frame.rate = RATE
        context = stream.codec_context
        fit = av.AudioResampler(format=context.format, layout=layout, rate=rate, frame_size=context.frame_size or None)
        for part in [*fit.resample(frame), *fit.resample(None)]:
            for packet in stream.encode(part) if part is not None else ():
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return file.getvalue()


def heard(value: Any) -> np.ndarray:
    row = {"bytes": value, "path": None} if isinstance(value, bytes) else value
    samples, _ = decode_audio(row, "noise of train/3")
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert samples.flags.writeable
    return samples


def refused(value: Any, kind: type[MstdistillError] = DataError) -> str:
    row = {"bytes": value, "path": "a.snd"} if isinstance(value, bytes) else value
    with pytest.raises(kind) as error:
        decode_audio(row, "noise of train/3")
    line = str(error.value)
    assert line.startswith("noise of train/3")
    assert "\n" not in line
    assert " at 0x" not in line  # differs from run to run
    return line


# Codec, container, and the largest error of its samples; None where it delays them or has its own rate.
CODINGS = [
    ("pcm_s16le", "wav", 4e-5), ("pcm_s24le", "wav", 1e-6), ("pcm_s32le", "wav", 1e-6), ("pcm_u8", "wav", 0.008),
    ("pcm_f32le", "wav", 1e-7), ("pcm_f64le", "wav", 1e-7), ("pcm_alaw", "wav", 0.02), ("pcm_mulaw", "wav", 0.02),
    ("flac", "flac", 4e-5), ("pcm_s16be", "aiff", 4e-5), ("pcm_s16be", "au", 4e-5), ("pcm_s16le", "caf", 4e-5),
    ("libmp3lame", "mp3", 0.05), ("libopus", "ogg", None), ("libopus", "webm", None), ("aac", "mp4", None),
    ("pcm_s16le", "avi", 4e-5), ("libmp3lame", "wav", None),
]  # fmt: skip


@pytest.mark.parametrize(("codec", "kind", "most"), CODINGS)
def test_files_are_the_mean_of_their_channels_and_whole(codec: str, kind: str, most: float | None) -> None:
    rate = 48000 if codec == "libopus" else RATE
    content = coded(codec, kind, rate=rate)
    samples, found = decode_audio({"bytes": content, "path": None}, "a")
    assert found == rate
    assert len(samples) == pytest.approx(rate, rel=0.15)
    if most is not None:
        assert np.abs(samples[:RATE] - MEAN).max() < most
    # loudness doesn't depend on the coding: FFmpeg's own mixing is 3 dB louder than the mean
    assert samples[2000:14000].std() == pytest.approx(MEAN[2000:14000].std(), rel=0.1)
    if kind != "avi":  # a list of packets that ends anywhere
        for cut in (len(content) // 2, 60):
            assert "fetch it again" in refused(content[:cut]) or cut == 60


def test_many_channels() -> None:
    assert np.abs(heard(coded("flac", "flac", [LEFT, RIGHT] * 2, "quad")) - MEAN).max() < 4e-5
    # PyAV crashes on so many planes, in a coding that isn't SciPy's
    for count in (8, 9, 51):
        coding = struct.pack("<HHIIHH", 7, count, RATE, RATE * count, count, 8)
        body = b"WAVEfmt \x10\0\0\0" + coding + b"data" + struct.pack("<I", 1000 * count) + bytes(range(count)) * 1000
        samples, _ = read_channels(io.BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body), "a")
        assert samples.shape == (1000, count)
        assert len(np.unique(samples[:, 7])) == 1
    wide = read_sound(io.BytesIO(coded("flac", "flac")), 8000)[0]
    assert wide.std() == pytest.approx(MEAN.std(), rel=0.01)


def test_wavs_with_wrong_headers() -> None:
    content = wav(SHORT)
    at = content.index(b"data")
    streamed = [
        content[:4] + size + content[8 : at + 4] + size + content[at + 8 :] for size in (b"\xff" * 4, b"\0" * 4)
    ]
    for whole in (*streamed, content[:4] + struct.pack("<I", 2**20) + content[8:]):
        assert np.array_equal(heard(whole), heard(content))
    odd = content[:at] + b"note" + struct.pack("<I", 3) + b"abc\0" + content[at:]
    assert np.array_equal(heard(odd[:4] + struct.pack("<I", len(odd) - 8) + odd[8:]), heard(content))
    cut = content[:20000]
    for broken in (cut, cut[:4] + struct.pack("<I", len(cut) - 8) + cut[8:], content[: at + 8], b"RIFF1234",
                   content[:4] + struct.pack("<I", at) + content[8 : at + 4] + b"\0" * 4, wav(SHORT[:0])):  # fmt: skip
        assert "not a readable wav file" in refused(broken) or "holds no sound" in refused(broken)
    # a coding that nobody knows: FFmpeg's stream has no rate
    assert "(a.snd): not a readable wav file" in refused(content[:20] + b"\x06\x77" + content[22:])
    assert "has a sampling rate of 0" in refused(wav(SHORT, 0))
    assert "holds NaN or Inf" in refused(wav(np.full(9, np.nan, np.float32)))
    assert heard(wav(np.full(9, 1.5, np.float32))).max() == 1.5


def test_what_is_no_sound() -> None:
    for value, words in (
        (b"hello there" * 9, "(a.snd): not a readable video or sound"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 100, "(a.snd)"),
        ({"bytes": b"", "path": None}, "is empty"),
        ({"bytes": None, "path": "no[1].wav"}, "no[1].wav can't be read (No such file"),
        ({"array": None, "sampling_rate": 8000}, "is empty"),
        (None, "is no file but NoneType"),
        (SHORT, "is no file but ndarray"),
    ):
        assert words in refused(value)


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    content, law, real = coded("flac", "flac"), coded("pcm_alaw", "wav"), builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for one in (content, law):
        assert "pip install 'mstdistill[prepare]'" in refused(one, ConfigError)
    assert np.array_equal(heard(wav(SHORT)), np.float32(SHORT / 32768))


def array(samples: Any, rate: Any = RATE) -> dict[str, Any]:
    return {"array": samples, "sampling_rate": rate}


@pytest.mark.parametrize(("samples", "wanted"), [
    (MEAN, MEAN),
    (MEAN.tolist(), MEAN),
    (MEAN.astype(np.float64) * 3, MEAN * 3),
    (BOTH, MEAN),
    (BOTH.T, MEAN),
    (LEFT[:, None], LEFT),
    (LEFT[None], LEFT),
    (np.stack([LEFT[:40]] * 32), LEFT[:40]),
    (SHORT, SHORT / 32768),
    (SHORT.tolist(), SHORT / 32768),
    ((BOTH * 32767).astype(np.int16), (BOTH * 32767).astype(np.int16).mean(axis=0) / 32768),
    (SHORT.astype(np.int32) * 65536, SHORT / 32768),
    ((SHORT.astype(np.int64) * 65536).tolist(), SHORT / 32768),
    ((SHORT // 256 + 128).astype(np.uint8), SHORT // 256 / 128),
    ((SHORT.astype(np.int32) + 32768).astype(np.uint16), SHORT / 32768),
    (np.float32([[0.5]]), np.float32([0.5])),
])  # fmt: skip
def test_arrays(samples: Any, wanted: np.ndarray) -> None:
    assert np.abs(heard(array(samples)) - wanted).max() < 1e-6


@pytest.mark.parametrize(("value", "words"), [
    (array(MEAN, None), "has no sampling rate"),
    ({"array": MEAN}, "has no sampling rate"),
    (array(MEAN, 0), "a sampling rate of 0"),
    (array(MEAN, -8000), "a sampling rate of -8000"),
    (array(MEAN, float("nan")), "a sampling rate of nan"),
    (array(MEAN, float("inf")), "a sampling rate of inf"),
    (array(MEAN, 16000.5), "a sampling rate of 16000.5"),
    (array(MEAN, "16000"), "a sampling rate of 16000"),
    (array([[1.0, 2.0], [3.0]]), "different lengths"),
    (array([]), "holds no sound"),
    (array([1.0, None]), "missing samples"),
    (array([1.0, float("nan")]), "NaN or Inf"),
    (array(np.float64([1e300])), "NaN or Inf"),
    (array(["a"]), "give numbers"),
    (array([True, False]), "holds bool"),
    (array(np.zeros((5, 5))), "which axis of [5, 5] is the channels"),
    (array(np.zeros((40, 50))), "which axis of [40, 50] is the channels"),
    (array(np.zeros((2, 2, 9))), "an array [2, 2, 9] is no sound"),
    (array(np.float32(1.0)), "an array [] is no sound"),
    (array([2**40]), "at most 32 bits"),
])  # fmt: skip
def test_arrays_that_mean_nothing(value: Any, words: str) -> None:
    assert words in refused(value)


class Decoder:
    """As torchcodec's."""

    def __init__(self, data: Any, rate: int = RATE) -> None:
        self.data, self.sample_rate = data, rate

    def get_all_samples(self) -> Decoder:
        if self.data is None:
            raise RuntimeError("bad\nluck")
        return self


def test_a_decoder_of_torchcodec() -> None:
    import torch

    assert np.array_equal(heard(Decoder(torch.from_numpy(BOTH))), MEAN)
    assert "not a readable sound (bad)" in refused(Decoder(None))
    assert "holds no sound" in refused(Decoder(torch.zeros(2, 0)))


@pytest.mark.parametrize("rate", [8000, 11127, 44101, 199999])
def test_any_rate_is_resampled_in_little_memory(rate: int) -> None:
    import torch

    tone = torch.sin(torch.arange(rate // 4) * (2 * np.pi * 440 / rate))
    found = resample(tone, rate, RATE)[500:-500]
    assert found.dtype == torch.float32
    wanted = torch.sin(torch.arange(500, 500 + len(found)) * (2 * np.pi * 440 / RATE))
    assert (found - wanted).abs().max() < 0.01
