"""Sounds with torchaudio, without it, and with one that can't be loaded: the same numbers to rounding."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mstdistill.data.decode import dsp, spectra

WAVE = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0)) * 0.2
SOUNDS: dict[str, tuple[Callable[[], Tensor], float]] = {  # name -> values, the largest difference of theirs
    "log-mels of av-digits": (lambda: spectra.log_mel(WAVE[:, :6400], 8000, 32, 32), 2e-5),
    "MFCCs of RAVDESS": (lambda: spectra.mfcc(WAVE[0], 22_050, 40), 1e-4),
    "VGGish patches": (lambda: spectra.vggish_patches(WAVE[0], 2), 2e-5),
    "down, no simple ratio": (lambda: spectra.resample(WAVE, 48_000, 22_050), 1e-5),
    "down, half": (lambda: spectra.resample(WAVE, 16_000, 8_000), 1e-5),
    "up": (lambda: spectra.resample(WAVE, 8_000, 16_000), 1e-5),
    "few samples": (lambda: spectra.resample(WAVE[:, :5], 44_100, 16_000), 1e-5),
    "the authors' filter, in 16 bits": (lambda: spectra.resample_kaiser(WAVE, 48_000, 22_050), 1.1 / 32768),
}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchaudio isn't there."""
    monkeypatch.setattr(dsp, "torchaudio", lambda: None)
    dsp.mel_filters.cache_clear()
    yield  # type: ignore[misc]
    dsp.mel_filters.cache_clear()


@pytest.mark.skipif(dsp.torchaudio() is None, reason="torchaudio can't be loaded here: nothing to compare with")
@pytest.mark.parametrize("name", SOUNDS)
def test_both_forms_are_equal_to_rounding(name: str, request: pytest.FixtureRequest) -> None:
    compute, tolerance = SOUNDS[name]
    by_torchaudio = compute()
    request.getfixturevalue("without")
    found = compute()
    assert found.shape == by_torchaudio.shape
    assert found.dtype == by_torchaudio.dtype
    assert (found - by_torchaudio).abs().max() <= tolerance


def test_resampling_keeps_a_tone(without: None) -> None:
    """By the formula itself: what lies below both half rates comes out as if it had been sampled there."""
    rate, new = 48_000, 22_050
    times = [torch.arange(n, dtype=torch.float64) / r for n, r in ((rate, rate), (new, new))]
    given, wanted = (torch.sin(2 * torch.pi * 1000 * t) for t in times)
    found = dsp.resample(given, rate, new)
    assert found.dtype == torch.float64
    assert (found - wanted)[200:-200].abs().max() < 2e-3  # the filter's own ripple


BROKEN = """
import sys
sys.path.insert(0, sys.argv[1])
from transformers.utils import is_torchaudio_available
assert is_torchaudio_available()
from mstdistill.data.decode import dsp, spectra
import torch
print(spectra.resample(torch.ones(1, 64), 16000, 8000).shape)
assert dsp.torchaudio() is None
from transformers.utils import is_speech_available
assert not is_speech_available()
from transformers import ASTFeatureExtractor
print(ASTFeatureExtractor()([0.0] * 1600, sampling_rate=16000, return_tensors="np")["input_values"].shape)
"""


@pytest.mark.parametrize("error", ["OSError('libcudart.so.13: cannot open shared object file')", "RuntimeError('no')",
                                   "ImportError('undefined symbol: aoti')"])  # fmt: skip
def test_a_broken_torchaudio_is_told_once_and_done_without(tmp_path: Path, error: str) -> None:
    package = tmp_path / "torchaudio"
    package.mkdir()
    (package / "__init__.py").write_text(f"raise {error}\n")
    done = subprocess.run([sys.executable, "-c", BROKEN, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "torchaudio" in line]
    assert len(said) == 1
    assert said[0].startswith("mstdistill: torchaudio can't be loaded beside torch")
    assert "pip uninstall torchaudio" in said[0]
    assert "torch.Size([1, 32])" in done.stdout


def test_no_torchaudio_at_all_is_no_remark(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torchaudio'] = None\nfrom mstdistill.data.decode import dsp\nprint(dsp.torchaudio())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr.strip()) == ("None", "")
