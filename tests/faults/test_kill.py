"""Killed at random steps and resumed: the weights are those of the run never killed, to the byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_twenty_kills_change_no_byte(tmp_path: Path) -> None:
    kills, resumed, seed = 0, 0, 0
    while kills < 20:
        seed += 1
        folder = tmp_path / f"round{seed}"
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.kill_server", str(folder), "20", str(seed)],
            cwd=ROOT, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        kills += json.loads(done.stdout.splitlines()[-1])["kills"]
        for stage in ("cotrain", "specialise", "distill", "alone"):
            whole = (folder / "whole" / "run" / stage / "result.safetensors").read_bytes()
            killed = (folder / "killed" / "run" / stage / "result.safetensors").read_bytes()
            assert killed == whole, f"{stage} differs after being killed"
            histories = [json.loads((folder / k / "run" / stage / "result.json").read_text())["history"]
                         for k in ("whole", "killed")]  # fmt: skip
            assert histories[0] == histories[1], f"the history of {stage} differs"
        resumed += (folder / "killed" / "log").read_text().count("continues at epoch")
        assert "continues at epoch" not in (folder / "whole" / "log").read_text()
    # the kills struck: later attempts went on from checkpoints, not from the start
    assert resumed >= kills // 2
