"""Importing the package loads nothing heavy; the kernels need torch alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mstdistill

HEAVY = ("accelerate", "datasets", "transformers", "deepspeed", "torchaudio", "sklearn", "pandas", "matplotlib")


@pytest.mark.parametrize("module", ["mstdistill", "mstdistill.kernels", "mstdistill.cli"])
def test_nothing_heavy_is_imported(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in mstdistill.__all__:
        assert getattr(mstdistill, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = mstdistill.distil  # type: ignore[attr-defined]
