"""One modality through one Hugging Face processor: from a picture, a text or a sound to one tensor.

A model takes several named tensors (`input_ids`, `attention_mask`, ...); batches, caches and masks want one a modality.
So those of equal shape are stacked into one *packed* tensor [K, ...], and the model's wrapper takes them apart again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ConfigError, DataError, first_line
from . import dsp
from .extractors import Extractor, fitted
from .picture import decode_image
from .sound import decode_audio

KINDS = ("image", "audio", "text")
MOST_TOKENS = 128
RATE = 16_000  # of an example sound
_LOADERS = {"image": "AutoImageProcessor", "audio": "AutoFeatureExtractor", "text": "AutoTokenizer"}
_TEXT = ("input_ids", "attention_mask", "token_type_ids")
_FIXED = "set `processor` to one that resizes to a fixed height and width"
# What a processor's settings say of itself that doesn't change its numbers.
_IDLE = ("processor_class", "_processor_class", "name_or_path", "_name_or_path", "transformers_version")


@dataclass(frozen=True)
class Port:
    """How a modality's tensor becomes a model's named inputs.

    Attributes:
        kind: "image", "audio", "text", or "array" for tensors that no processor made.
        names: the model's arguments; with `stacked` one a row of the packed tensor.
        shape: of the tensor, without the batch.
        stacked: whether the tensor is packed.
    """

    kind: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool = False

    def unpack(self, view: Tensor) -> dict[str, Tensor]:
        """A model's arguments from a packed tensor [B, ...]; token numbers and masks become int64."""
        parts = view.unbind(1) if self.stacked else (view,)
        whole = {name: self.kind == "text" or name == "attention_mask" for name in self.names}
        return {name: x.long() if whole[name] else x for name, x in zip(self.names, parts, strict=True)}

    def sample(self, batch: int = 1) -> Tensor:
        """A tensor [batch, ...] that the model can take: zeros, with every token attended to."""
        view = torch.zeros(batch, *self.shape, dtype=torch.int32 if self.kind == "text" else torch.float32)
        if "attention_mask" in self.names:
            view[:, self.names.index("attention_mask")] = 1
        return view


@dataclass(frozen=True)
class Processing:
    """A processor for one modality; it loads itself where it is used, so that it travels to other processes.

    Args:
        kind: of `KINDS`.
        source: hub id or folder.
        owner: the network that wants it, for messages; no part of what it is.
        max_length: tokens of a text; None: the tokenizer's limit, at most 128.
        max_seconds: that sounds are padded or cut to, where the processor doesn't do so by itself.
    """

    kind: str
    source: str
    owner: str = field(default="model", compare=False)
    revision: str | None = None
    trust_remote_code: bool = False
    max_length: int | None = None
    max_seconds: float = 10.0

    @property
    def tool(self) -> Any:
        """The tokenizer, image processor or feature extractor.

        Raises:
            ConfigError: there is none for this kind, or it can't be had.
        """
        return _load(self)

    def __call__(self, raw: Any) -> np.ndarray:
        """A picture (PIL), a text, or a sound (samples [n], rate) as one array, float32 or int32, of the port's shape.

        Raises:
            DataError: the processor can't take it, or makes NaN or Inf of it.
        """
        packed = self._pack(self._named(raw))
        if self.kind != "text" and not np.isfinite(packed).all():
            raise DataError(f"{self.source}: the processor makes NaN or Inf of this {self.kind}; leave it out")
        return packed

    def port(self) -> Port:
        """The model's arguments and the packed shape, from a sample.

        Raises:
            ConfigError: the processor's shape follows the size of a picture or the length of a sound, or it can't be
                had or used.
        """
        try:
            named = self._named(_example(self.kind))
            if self.kind == "image":
                self._check_one_size()
        except DataError as error:
            raise ConfigError(f"{self.owner}: {error}") from None
        packed = self._pack(named)
        return Port(self.kind, tuple(named), packed.shape, self.kind == "text" or len(named) > 1)

    def digest(self) -> str:
        """A short hash of everything that decides the numbers; equal for equal processors of different models."""
        tool, settings = self.tool, {}
        if self.kind == "text":
            backend = getattr(tool, "backend_tokenizer", None)
            settings["vocabulary"] = backend.to_str() if backend else sorted(tool.get_vocab().items())
            settings["length"] = self.length()
            settings["side"] = (tool.padding_side, tool.truncation_side, tool.model_input_names)
        else:
            settings = _plain(tool.to_dict())
            if self.kind == "audio":
                settings["seconds"] = self.max_seconds
        text = json.dumps([self.kind, type(tool).__name__, settings], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def length(self) -> int:
        """Tokens of a text."""
        return self.max_length or min(int(self.tool.model_max_length), MOST_TOKENS)

    def about(self) -> str:
        """What is done to a raw value before the processor's own steps, in words."""
        if self.kind == "text":
            return f"texts are padded or cut to {self.length()} tokens"
        if self.kind == "image":
            return "pictures stand as their EXIF says, what is transparent lies on white"
        extractor = _extractor(self)
        rate = f" at {extractor.rate:,} Hz" if extractor.rate else ""
        fits = "the processor's own length" if extractor.length is None else \
            f"{extractor.length / (extractor.rate or RATE):g} s"  # fmt: skip
        return f"sounds are the mean of their channels{rate}, padded with silence or cut to {fits}"

    def save(self, folder: Path) -> None:
        """Write the processor's files."""
        self.tool.save_pretrained(folder)

    def _named(self, raw: Any) -> dict[str, np.ndarray]:
        read = self._image if self.kind == "image" else self._audio if self.kind == "audio" else self._text
        try:
            return read(raw)
        except (ConfigError, MemoryError):
            raise
        except Exception as error:  # tools raise what they like
            raise DataError(f"{self.source}: the processor can't take this {self.kind}: {first_line(error)}") from None

    def _image(self, image: Any) -> dict[str, np.ndarray]:
        made = self._made_of(image)
        return {"pixel_values": np.asarray(made["pixel_values"][0], dtype=np.float32)}

    def _made_of(self, image: Any) -> Mapping[str, Any]:
        if not hasattr(image, "convert") and hasattr(image, "__array__"):
            image = np.asarray(image)
        colour = decode_image(image, "this picture").convert("RGB")
        made: Mapping[str, Any] = self.tool(images=colour, return_tensors="np")
        if len(made["pixel_values"]) != 1:
            raise DataError(f"{type(self.tool).__name__} gives {len(made['pixel_values'])} parts for one, which isn't "
                            f"supported; {_FIXED}")  # fmt: skip
        return made

    def _check_one_size(self) -> None:
        """A small picture and a large one of another form, made the same."""
        from PIL import Image

        tool = self.tool
        small, large = self._made_of(_example("image")), self._made_of(Image.new("RGB", (500, 1400), (128, 128, 128)))
        for name in small:
            a, b = np.asarray(small[name][0]), np.asarray(large[name][0])
            told = name == "pixel_values" or name in tool.model_input_names
            if told and (a.shape != b.shape or (name != "pixel_values" and not np.array_equal(a, b))):
                raise DataError(f"{self.source}: what {type(tool).__name__} makes follows the picture's size ({name}, "
                                f"{list(a.shape)} and {list(b.shape)}), which isn't supported; {_FIXED}")  # fmt: skip

    def _text(self, text: str) -> dict[str, np.ndarray]:
        if not isinstance(text, str):
            raise DataError(f"no text but {type(text).__name__}")
        made = self.tool(text, padding="max_length", truncation=True, max_length=self.length(), return_tensors="np")
        return {name: np.asarray(made[name][0], dtype=np.int32) for name in _TEXT if name in made}

    def _audio(self, sound: tuple[np.ndarray, int]) -> dict[str, np.ndarray]:
        from .spectra import resample

        extractor, (samples, rate) = _extractor(self), sound
        samples, rate = decode_audio({"array": samples, "sampling_rate": rate}, "this sound")
        return extractor(resample(torch.from_numpy(samples), rate, extractor.rate or rate).numpy())

    def _pack(self, named: Mapping[str, np.ndarray]) -> np.ndarray:
        if self.kind == "text" or len(named) > 1:
            return np.stack(list(named.values()))
        return next(iter(named.values()))


@lru_cache(maxsize=32)
def _load(processing: Processing) -> Any:
    if processing.kind == "audio":
        dsp.torchaudio()  # a broken one would break transformers' extractors too
    import transformers

    from ...hub import fetching, located

    loader = getattr(transformers, _LOADERS[processing.kind])
    what = {"image": "image processor", "audio": "feature extractor", "text": "tokenizer"}[processing.kind]
    with fetching(processing.owner, processing.source, f"{what} for its {processing.kind}"):
        tool = loader.from_pretrained(
            located(processing.source), revision=processing.revision, trust_remote_code=processing.trust_remote_code
        )
    if processing.kind == "text":
        if tool.pad_token is None:
            tool.pad_token = tool.eos_token or tool.unk_token
        if not len(tool):
            raise ConfigError(f"{processing.owner}: the tokenizer of {processing.source} has no words")
    if processing.kind == "audio" and getattr(tool, "truncation", None) == "fusion":
        raise ConfigError(
            f"{processing.owner}: {processing.source} cuts sounds for a fused CLAP, which isn't supported; take an "
            "unfused one, for example laion/clap-htsat-unfused"
        )
    return tool


@lru_cache(maxsize=32)
def _extractor(processing: Processing) -> Extractor:
    return fitted(processing.tool, processing.max_seconds, f"{processing.owner}: {processing.source}")


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    # filter banks and windows follow from the other settings
    return {k: v for k, v in settings.items() if k not in _IDLE and not isinstance(v, np.ndarray)}


def _example(kind: str) -> Any:
    if kind == "text":
        return "a"
    if kind == "audio":
        return np.sin(np.arange(RATE, dtype=np.float32) / 20.0), RATE
    from PIL import Image

    return Image.new("RGB", (64, 48), (128, 128, 128))
