"""One of several processes is killed, hangs or is stopped between steps: the others say so and end; nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mstdistill.engine.stopping import Stopping
from mstdistill.errors import Interrupted, Preempted
from mstdistill.stages import constant_logits
from tests import toy

ROOT = Path(__file__).parents[2]
STAGES = ("cotrain", "specialise", "distill", "alone")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [2, 3])
def test_killed_ranks_change_no_byte(ranks: int, tmp_path: Path) -> None:
    """Kills at random steps, dropout on; those that noticed say it in one line and end with code 75."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.rank_server", str(tmp_path), "7", str(ranks), str(ranks)],
        cwd=ROOT, env={**os.environ, "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kills = json.loads(done.stdout.splitlines()[-1])["kills"]
    assert len(kills) >= 3
    for stage in STAGES:
        whole = (tmp_path / "whole" / "run" / stage / "result.safetensors").read_bytes()
        assert (tmp_path / "killed" / "run" / stage / "result.safetensors").read_bytes() == whole, stage
    log = (tmp_path / "killed" / "log").read_text()
    training = [kill for kill in kills if kill["training"]]
    for kill in training:
        assert kill["noticed"] is not None, f"the others hung: {kill}"
        assert set(kill["codes"]) == {75}, log[-3000:]
    assert log.count("lost another one") >= len(training)
    assert "Traceback" not in log


def test_signals_wait_for_a_step_or_stop_at_once() -> None:
    stopping = Stopping()
    with stopping.at_next_step():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stopping.asked == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    for number, kind in ((signal.SIGINT, Interrupted), (signal.SIGUSR1, Preempted)):
        stopping = Stopping()
        with stopping.listening(), pytest.raises(kind, match="between steps"):
            signal.raise_signal(number)


def test_a_signal_while_a_cache_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = toy.run(tmp_path / "whole").folder
    build = constant_logits.build_cache

    def struck(*words: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return build(*words)

    with monkeypatch.context() as patch:
        patch.setattr(constant_logits, "build_cache", struck)
        with pytest.raises(Preempted, match=r"between steps.*resume with: the same call"):
            toy.run(tmp_path / "run")
    found = toy.run(tmp_path / "run").folder
    for stage in STAGES:
        name = f"{stage}/result.safetensors"
        assert (found / name).read_bytes() == (wanted / name).read_bytes()
