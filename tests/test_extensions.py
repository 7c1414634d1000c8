"""A lock that a killed build left is taken away; one of a build that may be running stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mstdistill.engine.extensions import LEFT_AFTER, forget_left_locks, leave_out_inference


@pytest.mark.parametrize("folder", ["op", "py311_cu130/op"])
def test_left_locks_go_and_others_stay(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left, held = tmp_path / folder / "lock", tmp_path / f"{folder}2" / "lock"
    for lock in (left, held):
        lock.parent.mkdir(parents=True)
        lock.touch()
    os.utime(left, (time.time() - LEFT_AFTER - 5,) * 2)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert forget_left_locks() == [left]
    assert not left.exists()
    assert held.exists()
    assert forget_left_locks(tmp_path / "nowhere") == []


def test_nothing_is_built_for_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's own name for the operator, and its own place where it looks."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    pytest.importorskip("deepspeed")
    from deepspeed.comm.torch import build_shm_op
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    monkeypatch.setattr(ShareMemCommBuilder, "load", lambda self: pytest.fail("built"))
    leave_out_inference()
    assert build_shm_op() is None
