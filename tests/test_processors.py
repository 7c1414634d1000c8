"""Processors of any model: one shape for every raw value, found before anything is computed, or a refusal by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image

from mstdistill.data.decode import dsp
from mstdistill.data.processors import Processing
from mstdistill.errors import ConfigError, DataError

from . import tiny_hub


def processing(folder: Path, tool: Any, model: str, kind: str = "audio", **options: Any) -> Processing:
    tool.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model}))
    return Processing(kind, str(folder), "teacher 't'", **options)


def tone(count: int) -> np.ndarray:
    return np.sin(np.arange(count, dtype=np.float32) / 9)


LENGTHS = [(100, 16000), (8000, 16000), (16000, 16000), (48000, 16000), (160000, 8000), (132300, 44100)]
# Tool, model type, and how it comes to one shape: by itself, with a mask, or with silence.
EXTRACTORS: list[tuple[str, dict[str, Any], str, str]] = [
    ("WhisperFeatureExtractor", {"chunk_length": 2}, "whisper", "itself"),
    ("ASTFeatureExtractor", {"num_mel_bins": 32, "max_length": 64}, "audio-spectrogram-transformer", "itself"),
    ("ClapFeatureExtractor", {"truncation": "rand_trunc", "max_length_s": 1}, "clap", "itself"),
    ("ClvpFeatureExtractor", {}, "clvp", "itself"),
    ("Wav2Vec2FeatureExtractor", {}, "wav2vec2", "samples"),
    ("Wav2Vec2FeatureExtractor", {"return_attention_mask": True}, "wavlm", "mask"),
    ("SpeechT5FeatureExtractor", {}, "speecht5", "mask"),
    ("SeamlessM4TFeatureExtractor", {}, "wav2vec2-bert", "silence"),
    ("Speech2TextFeatureExtractor", {}, "speech_to_text", "silence"),
    ("UnivNetFeatureExtractor", {}, "univnet", "silence"),
    ("EncodecFeatureExtractor", {}, "encodec", "silence"),
    ("EncodecFeatureExtractor", {"chunk_length_s": 1.0, "overlap": 0.01}, "encodec", "silence"),
    ("DacFeatureExtractor", {}, "dac", "silence"),
    ("MusicgenMelodyFeatureExtractor", {}, "musicgen_melody", "silence"),
    ("ParakeetFeatureExtractor", {}, "parakeet_ctc", "silence"),
    ("Phi4MultimodalFeatureExtractor", {}, "phi4_multimodal", "silence"),
    ("GraniteSpeechFeatureExtractor", {}, "granite_speech", "silence"),
]


# As in our own code: before transformers looks for one that may be broken.
dsp.torchaudio()
# transformers has no other form of these.
OF_TORCHAUDIO = ("MusicgenMelodyFeatureExtractor", "GraniteSpeechFeatureExtractor")


@pytest.mark.parametrize(("name", "options", "model", "way"), EXTRACTORS)
def test_every_sound_has_one_shape(name: str, options: dict[str, Any], model: str, way: str, tmp_path: Path) -> None:
    tool = getattr(transformers, name, None)
    if tool is None:
        pytest.skip(f"no {name} in this version of transformers")
    if name in OF_TORCHAUDIO and dsp.torchaudio() is None:
        pytest.skip(f"{name} needs torchaudio")
    one, other = (processing(tmp_path, tool(**options), model, max_seconds=s) for s in (1.5, 2.0))
    port = one.port()
    for count, rate in LENGTHS:
        assert one((tone(count), rate)).shape == port.shape, (count, rate)
    assert (other.port().shape == port.shape) == (way == "itself")
    assert port.stacked == (way == "mask")
    if way == "mask":
        assert one((tone(8000), 16000))[1].sum() == 8000


def test_values_of_a_padded_sound_are_those_of_silence_after_it(tmp_path: Path) -> None:
    tool = transformers.SeamlessM4TFeatureExtractor()
    made = processing(tmp_path, tool, "wav2vec2-bert", max_seconds=1.0)((tone(8000), 16000))
    whole = tool(np.pad(tone(8000), (0, 8000)), sampling_rate=16000, return_tensors="np")
    assert np.array_equal(made, whole["input_features"][0])


def test_a_sound_shorter_than_the_window_is_padded(tmp_path: Path) -> None:
    tool = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64)
    one = processing(tmp_path, tool, "audio-spectrogram-transformer")
    made = one((np.ones(100, np.float32), 16000))
    assert np.array_equal(made, one((np.pad(np.ones(100, np.float32), (0, 1500)), 16000)))
    # what it takes, it gets as it is
    whole = tool(tone(500), sampling_rate=16000, return_tensors="np")["input_values"][0]
    assert np.array_equal(one((tone(500), 16000)), whole)


@pytest.mark.parametrize(("name", "options", "model", "words"), [
    ("EncodecFeatureExtractor", {"feature_size": 2}, "encodec", "EncodecFeatureExtractor doesn't give one shape"),
    ("ClapFeatureExtractor", {}, "clap", "fused CLAP"),
])  # fmt: skip
def test_extractors_are_refused_before_anything_is_computed(
    name: str, options: dict[str, Any], model: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        processing(tmp_path, getattr(transformers, name)(**options), model).port()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "options", "model", "words"), [
    ("ViTImageProcessor", {"do_resize": False}, "vit", "follows the picture's size"),
    ("ViltImageProcessor", {}, "vilt", "follows the picture's size"),
    ("PixtralImageProcessor", {}, "pixtral", "follows the picture's size"),
    ("LlavaNextImageProcessor", {}, "llava_next", "follows the picture's size"),
    ("Siglip2ImageProcessor", {}, "siglip2", "follows the picture's size"),
    ("Qwen2VLImageProcessor", {}, "qwen2_vl", "parts for one"),
    ("ImageGPTImageProcessor", {}, "imagegpt", "can't take this image"),
])  # fmt: skip
def test_image_processors_are_refused_before_anything_is_computed(
    name: str, options: dict[str, Any], model: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        processing(tmp_path, getattr(transformers, name)(**options), model, "image").port()
    line = str(error.value)
    assert line.startswith("teacher 't'")
    assert words in line
    assert "\n" not in line


def vit(folder: Path) -> Processing:
    tool = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    return processing(folder, tool, "vit", "image")


def test_every_picture_has_one_shape_and_its_colour(tmp_path: Path) -> None:
    one = vit(tmp_path)
    assert one.port().shape == (3, 16, 16)
    for size in ((1, 1), (40, 1), (1, 40), (40, 3), (3, 40), (4000, 20)):
        made = one(Image.new("RGB", size, (0, 255, 255)))
        assert np.allclose(made, np.float32([-1, 1, 1])[:, None, None], atol=1e-3), size
    assert np.allclose(one(Image.new("RGBA", (5, 4))), 1.0, atol=1e-3)  # clear, on white
    assert np.allclose(one(np.full((5, 4), 65535, np.uint16)), 1.0, atol=1e-3)


def test_raw_values_that_mean_nothing_are_one_line(tmp_path: Path) -> None:
    tiny_hub.bert(tmp_path / "bert")
    text, image = Processing("text", str(tmp_path / "bert")), vit(tmp_path / "vit")
    sound = processing(tmp_path / "sound", transformers.Wav2Vec2FeatureExtractor(), "wav2vec2", max_seconds=0.5)
    for one, raw, words in (
        (text, None, "no text but NoneType"), (text, ["a", "b"], "no text but list"), (text, b"a", "no text but bytes"),
        (text, "\ud800", "can't take this text"),
        (image, None, "no file but NoneType"), (image, Image.new("RGB", (0, 0)), "has no pixels"),
        (image, np.full((4, 4), np.nan), "NaN or Inf"),
        (sound, None, "can't take this audio"), (sound, (np.zeros(0), 16000), "holds no sound"),
        (sound, (tone(9), 0), "sampling rate of 0"), (sound, (tone(9), None), "no sampling rate"),
        (sound, (np.full(9, np.nan), 16000), "NaN or Inf"), (sound, ([[1.0], [2.0, 3.0]], 16000), "different lengths"),
    ):  # fmt: skip
        with pytest.raises(DataError) as error:
            one(raw)
        assert words in str(error.value)
        assert "\n" not in str(error.value)
    for raw in ("", "\0", "a thing " * 10_000, "\n\r\t", "🙂"):
        assert text(raw).shape == text.port().shape


def test_what_a_tool_raises_or_makes_of_nothing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = vit(tmp_path)
    picture = Image.new("RGB", (4, 4))

    def raising(error: Exception) -> Any:
        def call(*_: Any, **__: Any) -> Any:
            raise error

        return call

    for error in (
        IndexError("a\nb"),
        ZeroDivisionError(),
        AssertionError("no"),
        StopIteration(),
        NotImplementedError(),
    ):
        monkeypatch.setattr(type(one.tool), "__call__", raising(error))
        with pytest.raises(DataError, match=r"can't take this image: [^\n]+$"):
            one(picture)
    empty = {"pixel_values": np.full((1, 3, 16, 16), np.nan)}
    monkeypatch.setattr(type(one.tool), "__call__", lambda *_, **__: empty)
    with pytest.raises(DataError, match="makes NaN or Inf of this image"):
        one(picture)


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path) -> None:
    tokenizer = tiny_hub.words(tmp_path)
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    made = Processing("text", str(tmp_path))("a thing")
    assert made.shape == (3, 16)
    assert made[1].tolist() == [1] * 4 + [0] * 12


def test_what_is_done_to_sounds_is_said(tmp_path: Path) -> None:
    own = processing(tmp_path / "a", transformers.WhisperFeatureExtractor(chunk_length=2), "whisper")
    assert own.about().endswith("at 16,000 Hz, padded with silence or cut to the processor's own length")
    cut = processing(tmp_path / "b", transformers.SeamlessM4TFeatureExtractor(), "wav2vec2-bert", max_seconds=2.5)
    assert cut.about() == "sounds are the mean of their channels at 16,000 Hz, padded with silence or cut to 2.5 s"
