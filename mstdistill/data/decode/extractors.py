"""Feature extractors of any kind, made to give one shape for every sound.

Some do so by themselves (Whisper, AST, CLAP). Those that give the samples back (wav2vec 2.0 and its kin, SpeechT5) pad
and cut by themselves once they are told to, and say what is padding. For all others sounds are padded with silence, or
cut, beforehand. Which of these a tool is, a few calls tell, not its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError, first_line

# What a model's main argument may be called, where the tool's own list doesn't say.
_MAIN = ("input_features", "input_values")
# A sound that a tool of one shape refuses is padded to this, a few windows of any spectrogram.
_SHORTEST = 0.1
# Sounds to look at a tool with; the last is longer than what Whisper hears.
_PROBES = (0.3, 1.0, 35.0)
_PROBE_RATE = 16000


@dataclass(frozen=True)
class Extractor:
    """A feature extractor and how sounds are made to fit it.

    Attributes:
        rate: that it wants; None: any.
        length: samples that sounds are padded or cut to; None: it gives one shape by itself.
        masked: whether it pads by itself, with a mask.
        form: of its tensors, "np" or "pt".
        shape: of what comes out; None: not known yet.
    """

    tool: Any
    rate: int | None
    length: int | None = None
    masked: bool = False
    form: str = "np"
    shape: tuple[int, ...] | None = None

    def __call__(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """Named arrays of samples [n] float32 at `rate`, n > 0.

        Raises:
            DataError: of another shape than other sounds.
        """
        if self.masked:
            made = self._call(wave, padding="max_length", max_length=self.length, truncation=True)
        elif self.length is not None:
            made = self._call(padded(wave[: self.length], self.length))
        else:
            made = self._whole(wave)
        main = self._main(made)
        named = {main: np.asarray(made[main][0], dtype=np.float32)}
        if self.masked and "attention_mask" in made:
            named["attention_mask"] = np.asarray(made["attention_mask"][0], dtype=np.float32)
        if self.shape is not None and named[main].shape != self.shape:
            raise DataError(f"gives {list(named[main].shape)} of it where other sounds have {list(self.shape)}")
        return named

    def _whole(self, wave: np.ndarray) -> Mapping[str, Any]:
        if getattr(self.tool, "nb_max_samples", None):
            # a longer sound would be cut at a random place
            wave = wave[: int(self.tool.nb_max_samples)]
        shortest = round(_SHORTEST * (self.rate or _PROBE_RATE))
        try:
            return self._call(wave)
        except Exception:  # shorter than its window
            if len(wave) >= shortest:
                raise
            return self._call(padded(wave, shortest))

    def _call(self, wave: np.ndarray, **options: Any) -> Mapping[str, Any]:
        known = inspect.signature(self.tool.__call__).parameters
        open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
        for name, value in (("sampling_rate", self.rate), ("return_tensors", self.form)):
            if value is not None and (name in known or open_ended):
                options[name] = value
        made: Mapping[str, Any] = self.tool(wave, **options)
        return made

    def _main(self, made: Mapping[str, Any]) -> str:
        names = [name for name in (*_MAIN, *getattr(self.tool, "model_input_names", ())) if name in made]
        if not names:
            raise DataError(f"gives {', '.join(made)}, of which none is a model's main argument")
        return names[0]


def padded(wave: np.ndarray, length: int) -> np.ndarray:
    """Samples [n] with silence at the end, [length] where n is less."""
    return np.pad(wave, (0, max(0, length - len(wave))))


def fitted(tool: Any, seconds: float, name: str) -> Extractor:
    """A feature extractor that gives one shape for every sound.

    Args:
        seconds: that sounds are padded or cut to, where they must be.
        name: how messages call it.

    Raises:
        ConfigError: its shape follows the sound whatever is done, or it takes no sounds of this length.
    """
    rate = getattr(tool, "sampling_rate", None)
    seen: list[str] = []
    for form in ("np", "pt"):  # some know one of them only
        own = Extractor(tool, None if rate is None else int(rate), form=form)
        shapes = _shapes(own, _PROBES[:2], seen)
        if len(set(shapes)) == 1:
            window = getattr(tool, "n_samples", None)  # a kin of Whisper that doesn't cut by itself
            for way in (own, replace(own, length=window)) if isinstance(window, int) else (own,):
                if _shapes(way, _PROBES[2:], seen) == shapes[:1]:
                    return replace(way, shape=shapes[0])
        if own.rate is None:
            continue
        still = replace(own, length=max(1, round(seconds * own.rate)))
        gives_samples = shapes[-1:] == [(round(_PROBES[1] * own.rate),)]
        for way in ([replace(still, masked=True)] if gives_samples else []) + [still]:
            shapes = _shapes(way, (_PROBES[0], seconds + 1.0), seen)
            if len(set(shapes)) == 1 and 0 not in shapes[0] and (not way.masked or shapes[0] == (way.length,)):
                return replace(way, shape=shapes[0])
    raise ConfigError(f"{name}: {type(tool).__name__} doesn't give one shape for every sound of {seconds:g} s "
                      f"({'; '.join(dict.fromkeys(seen[-2:]))}); set max_seconds, or take another model")  # fmt: skip


def _shapes(way: Extractor, lengths: Sequence[float], seen: list[str]) -> list[tuple[int, ...]]:
    """What tones of these seconds become; none where one of them fails, which is noted."""
    shapes = []
    for seconds in lengths:
        count = round(seconds * (way.rate or _PROBE_RATE))
        try:
            made = list(way(np.sin(np.arange(count, dtype=np.float32) / 20.0)).values())
        except MemoryError:
            raise
        except Exception as error:  # tools raise what they like
            seen.append(first_line(error, 100))
            return []
        if len({x.shape for x in made}) != 1:
            return []
        shapes.append(made[0].shape)
        seen.append(f"{list(made[0].shape)} of {seconds:g} s")
    return shapes
