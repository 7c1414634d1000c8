"""Compiled builds, without a GPU: every launch configuration keeps its limits, the table says what the sources give."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mstdistill.kernels.configurations import SMALL, TARGETS

TABLE = Path(__file__).with_name("builds.json")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: here Triton's kernels are defined for the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "mstdistill.kernels.aot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200, check=False)


@pytest.mark.slow
def test_builds_are_current_and_within_limits() -> None:
    done = run("--check", str(TABLE), "--fresh", "16")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.slow
def test_a_table_that_lies_is_found_out(tmp_path: Path) -> None:
    content = json.loads(TABLE.read_text())
    names = [name for name in content if name != "triton"]
    content[names[0]]["key"] = "0" * 16
    content[names[1]]["stack"] = 64
    content[names[2]]["float_atomics"] = True
    del content[names[3]]
    broken = tmp_path / "builds.json"
    broken.write_text(json.dumps(content))
    done = run("--check", str(broken), "--fresh", "0")
    assert done.returncode == 1
    for number, words in enumerate(
        ("changed since", "64 of stack, limit 8", "float atomics", "missing from the table")
    ):
        assert any(line.startswith(names[number]) and words in line for line in done.stdout.splitlines()), words


def test_the_table_covers_every_target_and_kernel() -> None:
    content = json.loads(TABLE.read_text())
    content.pop("triton")
    assert {name.rsplit(" ", 1)[1] for name in content} == {*TARGETS, SMALL}
    kernels = {name.split(" ")[0] for name in content}
    assert kernels == {
        "router.route_forward", "router.route_sums", "router.route_backward", "kd_rows.kd_rows", "kd_wide.kd_slices",
        "kd_wide.kd_wide", "kd_wide.kd_wide_reference", "kd_dense.kd_dense", "kd.scale_rows", "mask.attend",
        "mask.attend_backward_rows", "mask.attend_backward_columns", "apply_mask.apply_mask",
        "apply_mask.apply_mask_backward", "bernoulli.bernoulli",
    }  # fmt: skip


def test_not_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "mstdistill.kernels.aot", "--check", str(TABLE)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "can't be compiled in the interpreter" in done.stderr
