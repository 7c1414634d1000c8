"""Pictures and sounds to try things out with, as a person has them: two folders and a table.

    python scripts/shapes_and_tones.py things
    python scripts/shapes_and_tones.py things --labelled 0.2 --heard 0.7

makes things/pictures/*.png, small coloured shapes in noise, things/sounds/*.wav, a tone to each, and things/labels.csv
with their paths and what they are. A label or a sound that isn't there is an empty cell.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import wavfile

KINDS = ("circle", "cross", "square")
_COLOURS = ((200, 90, 80), (90, 180, 90), (90, 110, 210))
_SIDE = 32
_RATE = 16_000
_SECONDS = 0.5


def picture(kind: int, g: np.random.Generator) -> np.ndarray:
    """A shape somewhere in noise: [32, 32, 3] bytes. Its colour is its kind's, mostly."""
    y, x = np.mgrid[:_SIDE, :_SIDE] - g.integers(12, 20, size=(2, 1, 1))
    shapes = (x**2 + y**2 < 64, (abs(x) < 3) & (abs(y) < 9) | (abs(y) < 3) & (abs(x) < 9), (abs(x) < 7) & (abs(y) < 7))
    colour = _COLOURS[kind if g.random() < 0.7 else g.integers(len(KINDS))]
    shown = np.where(shapes[kind][..., None], colour, 120) + 50 * g.standard_normal((_SIDE, _SIDE, 3))
    return shown.clip(0, 255).astype(np.uint8)


def sound(kind: int, g: np.random.Generator) -> np.ndarray:
    """Half a second of a tone in hiss: [8000] 16-bit samples."""
    seconds = np.arange(int(_RATE * _SECONDS)) / _RATE
    wave = 0.4 * np.sin(2 * np.pi * 300 * (1 + 2 * kind) * g.uniform(0.9, 1.1) * seconds)
    return ((wave + 0.1 * g.standard_normal(len(seconds))).clip(-1, 1) * 32_767).astype(np.int16)


def make(folder: Path, count: int = 240, seed: int = 0, labelled: float = 1.0, heard: float = 1.0) -> None:
    """Write the two folders and the table.

    Args:
        labelled: share of the rows that say what they are.
        heard: share of the rows that have a sound.
    """
    g = np.random.default_rng(seed)
    for name in ("pictures", "sounds"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        kind = int(g.integers(len(KINDS)))
        shown, tone = f"pictures/{number:04}.png", f"sounds/{number:04}.wav"
        Image.fromarray(picture(kind, g)).save(folder / shown)
        has_sound, has_label = g.random() < heard, g.random() < labelled
        if has_sound:
            wavfile.write(folder / tone, _RATE, sound(kind, g))
        rows.append((shown, tone if has_sound else "", KINDS[kind] if has_label else ""))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("picture", "sound", "kind"), *rows])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--labelled", type=float, default=1.0, help="share of the rows that have a label")
    parser.add_argument("--heard", type=float, default=1.0, help="share of the rows that have a sound")
    given = parser.parse_args()
    make(given.folder, given.count, given.seed, given.labelled, given.heard)
    print(f"{given.folder}: {given.count} pictures in pictures/, their sounds in sounds/, labels.csv")


if __name__ == "__main__":
    main()
