"""A run over two nodes, each in a network of its own, loses one of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests import ready
from tests.faults.nodes import two_nodes, why_not

RUN = ["train", "av-digits", "cotrain.epochs=1", "specialise.epochs=1", "distill.epochs=30",
       "alone.enabled=false", "run.trackers=[]", "run.page=false", "data.limit=120",
       "batch_size=8", "run.checkpoint_steps=2",
       "run.checkpoint_seconds=0"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.distributed
def test_a_lost_node_is_replaced_and_the_weights_are_those_of_an_undisturbed_run(tmp_path: Path) -> None:
    """To the byte. The node is cut off and killed in stage 3; the other one waits for a new one, and both go on."""
    if reason := why_not():
        pytest.skip(reason)
    whole, struck = tmp_path / "whole", tmp_path / "struck"
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    undisturbed = ready.run("mstdistill.cli", *RUN, "--out", whole, ranks=2, env=env)
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]
    with two_nodes(tmp_path) as pair:
        pair.words = [*RUN, "--out", str(struck)]
        pair.start()
        pair.until(lambda: len(list(struck.glob("distill/checkpoints/0*/manifest.json"))) >= 2)
        pair.nodes[1].lose()
        assert not (struck / "distill" / "result.json").exists(), "too late a loss"
        pair.start(1)
        pair.finish()
        said = pair.nodes[0].said()
    for out in (whole, struck):
        assert json.loads((out / "binding.json").read_text())["processes"] == 2
    assert "lost another one" in said
    assert "distill: continues at" in said
    for stage in ("cotrain", "specialise", "distill"):
        name = f"{stage}/result.safetensors"
        assert (struck / name).read_bytes() == (whole / name).read_bytes(), stage
