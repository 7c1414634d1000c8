"""How far this project's preprocessing lies from that of the paper's authors, and which switch removes it.

python scripts/measure_released.py --out docs/results/released-differences.json

It takes ten seconds and prints the table of docs/data.md.

The publishers' sets aren't needed: sounds, videos, scenes and features of their rates, lengths and ranges are generated
from fixed seeds. Sizes are of what networks see, scaled to [0, 1], unless a row says otherwise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import lfilter

from mstdistill.backbones.catalogue import build
from mstdistill.data.decode.faces import Faces
from mstdistill.data.decode.spectra import min_max
from mstdistill.data.scale import Scale
from mstdistill.data.sources.ravdess import ReadClip, hear
from mstdistill.files import write_text
from mstdistill.importing import import_state_dict
from mstdistill.weights import load_weights
from tests import publishers

CLIPS, SCENES = 24, 200


def speech(seconds: float, rate: int, seed: int) -> np.ndarray:
    """Sounds like speech: syllables of a gliding voice through three resonances, hisses between them, a quiet room."""
    g = np.random.default_rng(seed)
    count = int(seconds * rate)
    pitch = g.uniform(90, 260) * (1 + 0.2 * np.sin(2 * np.pi * np.arange(count) / rate * g.uniform(0.3, 1.2)))
    voice = np.diff(np.floor(np.cumsum(pitch) / rate), prepend=0.0)
    hiss = g.standard_normal(count)
    beats = np.sin(np.pi * np.arange(count) / rate * g.uniform(3, 5))
    wave = np.clip(beats, 0, 1) * voice * 8 + np.clip(-beats - 0.5, 0, 1) * lfilter([1, -0.9], [1], hiss) * 0.3
    for formant, width in ((g.uniform(300, 800), 90), (g.uniform(900, 2300), 120), (g.uniform(2400, 3600), 200)):
        radius = np.exp(-np.pi * width / rate)
        wave += 0.4 * lfilter([1 - radius], [1, -2 * radius * np.cos(2 * np.pi * formant / rate), radius**2], wave)
    quiet = np.arange(count) / rate < 0.6  # RAVDESS's clips begin with silence
    wave[quiet] = 0
    return 0.5 * wave / np.abs(wave).max() + 0.001 * g.standard_normal(count)


def scenes(count: int, size: tuple[int, int] = (120, 160)) -> Iterator[np.ndarray]:
    """Depth pictures [1, H, W] in metres, 0.7 to 10 as the sensor sees: a room's back wall, floor, sides, furniture."""
    g = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]), indexing="ij")
    for _ in range(count):
        back = g.uniform(2.0, 9.5)
        floor = g.uniform(1.0, 2.0) / np.maximum(rows + g.uniform(-0.1, 0.4), 1e-3)
        side = g.uniform(1.0, 3.0) / np.maximum(np.abs(columns), 1e-3)
        depth = np.minimum(np.minimum(back, np.where(floor > 0, floor, back)), side)
        for _ in range(g.integers(1, 6)):
            top, left = g.integers(0, size[0] * 3 // 4), g.integers(0, size[1] * 3 // 4)
            box = depth[top : top + g.integers(10, 60), left : left + g.integers(10, 60)]
            np.minimum(box, g.uniform(0.8, back), out=box)
        yield np.clip(depth, 0.71, 9.99)[None].astype(np.float32)


def resampling(scratch: Path) -> str:
    """MFCCs of 48 kHz sounds, each clip scaled."""
    differences = []
    for i in range(CLIPS):
        path = scratch / f"{i}.wav"
        publishers.write_wav(path, speech(3.2 + 0.04 * i, 48000, i), 48000)
        differences.append(np.abs(hear(path) - hear(path, released=True)))
    return f"mean {np.mean(differences):.4f}, largest {np.max(differences):.3f}"


def frames(scratch: Path) -> str:
    """Pictures of clips of 3.0 to 4.5 s, 30 frames a second."""
    differences, longer = [], []
    for i, length in enumerate(range(90, 136, 5)):
        path = scratch / f"{i}.mp4"
        publishers.write_video(path, length, (72, 128), seed=i)
        ours, theirs = (ReadClip(scratch, Faces("centre"), how).see(path) for how in (False, True))
        differences.append(np.abs(ours.astype(float) - theirs).mean() / 255)
        longer.append(max(0, (length - 108) // 2))
    return f"mean {np.mean(differences):.3f}; {min(longer)} to {max(longer)} frames later"


def colours(scratch: Path) -> str:
    """Logits of a network with random weights, imported with and without its first layer turned."""
    torch.manual_seed(0)
    theirs = build("VisualBranchNet", 8).eval()
    torch.save(theirs.state_dict(), scratch / "theirs.pth")
    found = []
    bgr = torch.rand(4, 15, 3, 224, 224) * torch.tensor([0.3, 0.6, 1.0])[:, None, None]  # reddish, as faces are
    for turned in (False, True):
        out = scratch / f"{turned}.safetensors"
        import_state_dict(scratch / "theirs.pth", "VisualBranchNet", None, {}, out, bgr=turned)
        ours = build("VisualBranchNet", 8).eval()
        load_weights(ours, str(out), "imported")
        with torch.no_grad():
            wanted = theirs(bgr)
            found.append(float((ours(bgr.flip(2)) - wanted).abs().max() / wanted.abs().max()))
    return f"logits of a checkpoint: {found[0]:.0%} of the largest; turned, {found[1]:.0e}"


def depths() -> str:
    """Depths scaled by the whole set's least and greatest, and scene by scene."""
    rooms = torch.from_numpy(np.stack(list(scenes(SCENES))))
    ours = Scale(rooms.min(), rooms.max() - rooms.min())(rooms)
    differences = (ours - torch.from_numpy(min_max(rooms.numpy())[0])).abs()
    return f"mean {differences.mean():.3f}, largest {differences.max():.2f}"


def half(values: np.ndarray) -> str:
    """What float16 takes from features, scaled by their least and greatest."""
    spread = values.max() - values.min()
    return f"largest {np.abs(values - values.astype(np.float16).astype(np.float32)).max() / spread:.1e}"


def measure(scratch: Path) -> list[dict[str, str]]:
    """Every difference: what, ours, the authors', its size, and the switch that removes it."""
    g = np.random.default_rng(0)
    features = np.maximum(g.standard_normal((64, 10, 7, 7, 512), dtype=np.float32) * 8, 0)
    names = ("what", "ours", "released", "size", "switch")
    rows = [
        ("RAVDESS, sound: 48 kHz to 22,050 Hz", "torchaudio's default filter (Hann, 6 zero crossings)",
         "a long Kaiser window (64 zero crossings, rolloff 0.9476, beta 14.77), kept in 16 bits", resampling(scratch),
         "`--released`"),
        ("RAVDESS, frames of clips beyond 3.6 s", "from the middle", "from the first on", frames(scratch),
         "`--released`"),
        ("RAVDESS, colours", "RGB", "BGR", colours(scratch), "`mstdistill import --bgr`"),
        ("RAVDESS, faces", "OpenCV's cascade", "MTCNN", "not measured: MTCNN's packages are no longer kept",
         "none; the authors' arrays by `--source`"),
        ("NYU-Depth-V2, depths scaled by the least and greatest of", "all scenes", "each scene", depths(),
         "`--released`"),
        ("AV-MNIST, features stored as", "float16", "float32", half(g.random((64, 112, 112), dtype=np.float32)),
         "`--dtype float32`"),
        ("VGGSound-50k, features stored as", "float16", "float32", half(features), "`--dtype float32`"),
        ("Constant instances (a blank picture, silence), scaled", "0, and counted in the card",
         "not a number (0 / 0)", "all of such an instance", "none"),
    ]  # fmt: skip
    return [dict(zip(names, row, strict=True)) for row in rows]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as docs/data.md shows them."""
    names = ("what", "ours", "released", "size", "switch")
    head = ["what", "this project", "the authors", "difference", "removed by"]
    lines = [head, ["---"] * len(head), *([str(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="where the figures go, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(Path(scratch))
    inputs = {"clips": CLIPS, "scenes": SCENES, "torch": torch.__version__, "numpy": np.__version__}
    write_text(arguments.out, json.dumps({"generated": inputs, "differences": rows}, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
