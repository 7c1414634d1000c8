"""How far sounds without torchaudio are from those with it, for docs/data.md.

python scripts/measure_sound.py --out docs/results/sound-forms.json          (seconds)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mstdistill.data.decode import dsp, spectra

WAVE = torch.randn(4, 60_000, generator=torch.Generator().manual_seed(0)) * 0.2
SOUNDS: dict[str, Callable[[], Tensor]] = {
    "log-mels of av-digits": lambda: spectra.log_mel(WAVE[:, :6400], 8000, 32, 32),
    "MFCCs of RAVDESS": lambda: torch.stack([spectra.mfcc(one, 22_050, 40) for one in WAVE]),
    "VGGish patches of VGGSound's clips": lambda: spectra.vggish_patches(WAVE[0], 3),
    "resampling, 48,000 to 22,050 Hz": lambda: spectra.resample(WAVE, 48_000, 22_050),
    "resampling, 8,000 to 16,000 Hz": lambda: spectra.resample(WAVE, 8_000, 16_000),
    "the authors' resampling, in 16 bits": lambda: spectra.resample_kaiser(WAVE, 48_000, 22_050),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("sound-forms.json"))
    options = parser.parse_args()
    if dsp.torchaudio() is None:
        raise SystemExit("torchaudio doesn't load here: there is nothing to compare with")
    with_it = {name: compute() for name, compute in SOUNDS.items()}
    dsp.torchaudio = lambda: None  # type: ignore[assignment]
    dsp.mel_filters.cache_clear()
    found = {}
    for name, compute in SOUNDS.items():
        apart = (compute() - with_it[name]).abs().max()
        found[name] = {"largest difference": float(apart), "largest value": float(with_it[name].abs().max())}
    options.out.write_text(json.dumps({"torch": torch.__version__, "differences": found}, indent=1) + "\n")
    print("| sound | largest difference | largest value |\n| --- | --: | --: |")
    for name, figures in found.items():
        print(f"| {name} | {figures['largest difference']:.1e} | {figures['largest value']:.2g} |")


if __name__ == "__main__":
    main()
