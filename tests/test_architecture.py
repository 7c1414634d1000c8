"""The arrows between the files: the contracts of pyproject.toml, and that kernels need nothing but torch and Triton."""

from __future__ import annotations

import sys
from pathlib import Path

import grimp
import pytest
from importlinter import cli

ROOT = Path(__file__).parent.parent


def test_arrows_go_one_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    code = cli.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, is_debug_mode=False)
    assert code == cli.EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_kernels_need_torch_and_triton_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    graph = grimp.build_graph("kernels", include_external_packages=True, cache_dir=None)
    own = {name for name in graph.modules if name.split(".")[0] == "kernels" and not name.startswith("kernels.bench")}
    used = {name.split(".")[0] for one in own for name in graph.find_modules_directly_imported_by(one)}
    assert used - set(sys.stdlib_module_names) - {"kernels"} == {"torch", "triton"}
