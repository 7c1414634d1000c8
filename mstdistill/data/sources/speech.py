"""Spoken words from espeak-ng, in process.

The library and its voices come from the PyPI package `espeakng-loader`; espeak-ng is licensed under GPL-3.0-or-later.
It is loaded at run time, only to make the audio of `av-digits`; no part of it is distributed with this project.
"""

from __future__ import annotations

import ctypes
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError

_SYNCHRONOUS = 2  # hands the samples to the callback within the call; the asynchronous mode idles 15 ms a word
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_CHARS_UTF8, _POS_CHARACTER = 1, 1

LICENCE = "espeak-ng, GPL-3.0-or-later (loaded at run time from the package espeakng-loader)"


def _fresh_library(path: Path) -> Any:
    """The library in its initial state. Its generators of noise are static variables that outlive espeak_Terminate;
    a copy under a new name is loaded as a library of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return ctypes.CDLL(shutil.copy(path, folder))


class Speaker:
    """Says words: the same words in the same order from a new speaker give the same samples.

    Args:
        seed: of the library's own noise (breath, fricatives).

    Attributes:
        sample_rate: of what it says, in Hz.

    Raises:
        DataError: the library or its voices can't be loaded.
    """

    def __init__(self, seed: int = 1) -> None:
        try:
            import espeakng_loader

            self._library: Any = _fresh_library(Path(espeakng_loader.get_library_path()))
            voices = str(espeakng_loader.get_data_path()).encode()
        except (ImportError, OSError) as error:
            raise DataError(f"espeak-ng can't be loaded ({error}); run: pip install espeakng-loader") from None
        self.sample_rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 200, voices, 0))
        if self.sample_rate <= 0:
            raise DataError("espeak-ng finds no voices; reinstall espeakng-loader")
        self._blocks: list[np.ndarray] = []
        signature = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

        def receive(wave: Any, count: int, _: Any) -> int:
            if wave and count > 0:
                self._blocks.append(np.ctypeslib.as_array(wave, shape=(count,)).copy())
            return 0

        self._callback: Callable[..., int] = signature(receive)
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        ctypes.CDLL(None).srand(seed)

    def close(self) -> None:
        """Give the library back."""
        self._library.espeak_Terminate()

    def say(
        self, text: str, voice: str = "en-us", pitch: int = 50, speed: int = 175, intonation: int = 50
    ) -> np.ndarray:
        """Samples [n] float32 in [-1, 1].

        Args:
            voice: an espeak-ng voice, with a variant after a plus sign where wanted ("en-gb+f2").
            pitch, intonation: 0 to 99.
            speed: words per minute, 80 to 450.

        Raises:
            DataError: unknown voice, or nothing was said.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise DataError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((_RATE, speed), (_PITCH, pitch), (_RANGE, intonation), (_VOLUME, 100)):
            self._library.espeak_SetParameter(parameter, int(value), 0)
        self._blocks.clear()
        data = text.encode() + b"\0"
        self._library.espeak_Synth(
            ctypes.c_char_p(data), ctypes.c_size_t(len(data)), 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        self._library.espeak_Synchronize()
        if not self._blocks:
            raise DataError(f"espeak-ng said nothing for {text!r} with voice {voice!r}")
        return np.concatenate(self._blocks).astype(np.float32) / 32768.0
