"""Every case of a folder of golden numbers (float64, computed once by the method's released code).

The folder holds a `manifest.json` listing cases (name, kind, file, params, rtol) and one safetensors file each. More
cases are a folder, not code: `pytest tests/parity --golden DIR`.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mstdistill.backbones.catalogue import backbones

from .kinds import CHECKS

WITHOUT_KERNELS = ("backbone", "metrics")


def has_checker(case: dict[str, Any]) -> bool:
    if case["kind"] == "backbone":
        return case["params"]["backbone"] in backbones()
    return case["kind"] in CHECKS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption("--golden"))
        cases = json.loads((folder / "manifest.json").read_text())["cases"]
        covered = [case for case in cases if has_checker(case)]
        left = sorted({case["kind"] for case in cases if not has_checker(case)})
        if left:
            warnings.warn(f"golden cases without a checker yet, left out: {', '.join(left)}", stacklevel=1)
        pairs = [(case, kernels) for case in covered for kernels in ("torch", "triton")
                 if kernels == "torch" or case["kind"] not in WITHOUT_KERNELS]  # fmt: skip
        metafunc.parametrize(("case", "kernels"), pairs, ids=[f"{case['name']}-{kernels}" for case, kernels in pairs])


def test_agrees_with_released_code(
    case: dict[str, Any], kernels: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both kernel sets; without a GPU the Triton one runs in its interpreter."""
    monkeypatch.setenv("MSTDISTILL_KERNELS", kernels)
    golden = load_file(Path(request.config.getoption("--golden")) / case["file"])
    CHECKS[case["kind"]](golden, case["params"], case["rtol"])


def test_default_folder_covers_the_method() -> None:
    folder = Path(__file__).parent / "golden"
    cases = json.loads((folder / "manifest.json").read_text())["cases"]
    assert set(CHECKS) == {case["kind"] for case in cases}
    assert all(has_checker(case) for case in cases)
