"""Several processes over gloo against one: the same losses and weights for all three stages and the comparison."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import ready

STAGES = ("cotrain", "specialise", "distill", "alone")


def launch(processes: int, out: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    """The toy run on so many processes; how launchers start them is for the tests of nodes and of launch configs."""
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return ready.run("tests.toy", out, *settings, ranks=processes if processes > 1 else 0, env=env)


@pytest.mark.distributed
@pytest.mark.parametrize(("processes", "extra"), [
    (2, ()),
    (2, ("accumulate=2", "routing.rule=soft", "routing.signal=both", "routing.balance=CV", "distill.cache.mode=never")),
    (4, ("distill.clip_norm=0.5",)),
    (2, ("count=33", "norm=true")),  # the last step is one row, under batch norms
    (2, ("unused=true",)),  # parts of the networks have no part in the loss
    (2, ("data.labelled=0.1",)),  # steps without a label among them
    (2, ("augment.modalities={m1: [{noise: 0.5}, {shift: 0.3}], m2: [{noise: 0.5}]}", "augment.mixup=0.5")),
    (2, ("data.labelled=0.3", "data.labelled_share=0.4", "accumulate=2", "routing.rule=soft", "routing.signal=task",
         "specialise.task=0.5")),
    (2, ("lacking=true", "hiding=0.4", "routing.k=2", "data.labelled=0.5", "specialise.keep=0.3",
         "specialise.correct=true")),
    (2, ("data.sampler=balanced", "task_loss.label_smoothing=0.1")),
    (2, ("data.labelled=0.5", "accumulate=2", "routing.rule=soft", "routing.signal=task", "routing.reads=teachers",
         "routing.folds=2")),
    (2, ("data.labelled=0.3", "data.sampler=balanced", "task_loss.class_weights=balanced")),
    (2, ("several=true", "lacking=true", "hiding=0.4", "routing.k=2")),
    (2, ("several=true", "routing.rule=entropy", "routing.signal=task", "specialise.task=0.5",
         "task_loss.class_weights=balanced")),
])  # fmt: skip
def test_processes_of_a_batch_equal_one_of_a_wide_batch(processes: int, extra: tuple[str, ...], tmp_path: Path) -> None:
    """float32, 75 instances: the last step is short and uneven over the ranks.

    Tolerance: losses 1e-5 relative, weights 1e-6 in the mean and 5e-5 for each (sums over ranks round in another order,
    and Adam makes a step of a gradient that is all but rounding).
    With accumulation both sides take the same micro-batches, since load balance is defined on them.
    """
    results = []
    for count, batch in ((1, 16), (processes, 16 // processes)):
        out = tmp_path / str(count)
        done = launch(count, out, "count=75", "run.checkpoint_seconds=600", f"batch_size={batch}", *extra)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(out)
    for stage in STAGES:
        one, many = (load_file(out / stage / "result.safetensors") for out in results)
        assert set(one) == set(many)
        for name in one:
            assert (one[name] - many[name]).abs().max() <= 5e-5, f"{stage} {name}"
        apart = torch.cat([(one[name] - many[name]).abs().flatten().double() for name in one])
        assert apart.mean() <= 1e-6, stage
        histories = [json.loads((out / stage / "result.json").read_text())["history"] for out in results]
        for a, b in zip(*histories, strict=True):
            assert a.keys() == b.keys()
            for key in a:
                x, y = torch.tensor(a[key], dtype=torch.float64), torch.tensor(b[key], dtype=torch.float64)
                assert torch.allclose(x, y, rtol=1e-5, atol=1e-5), f"{stage} {key}: {x} and {y}"
    summaries = [json.loads((out / "summary.json").read_text())["networks"] for out in results]
    for a, b in zip(*summaries, strict=True):
        measure = "accuracy" if "accuracy" in a["test"] else "map_macro"
        assert a["test"][measure] == pytest.approx(b["test"][measure])


@pytest.mark.distributed
def test_a_broken_promise_is_refused(tmp_path: Path) -> None:
    """Two processes announced, no rendezvous: without the check each would train a model of its own."""
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true"}
    done = ready.run("tests.toy", tmp_path / "r", env=env)
    assert done.returncode == 2
    assert "asks for FSDP" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
