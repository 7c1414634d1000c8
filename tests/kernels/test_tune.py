"""Choosing tiles: the model ranks sensibly, what spills is never offered, a search finds what is faster and right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mstdistill.kernels import tiles
from mstdistill.kernels.launch import interpreted
from mstdistill.kernels.loads import share_of
from torch import Tensor

from .compare import TRITON

if not TRITON:
    pytest.skip("no Triton", allow_module_level=True)

from mstdistill.kernels.tune import model
from mstdistill.kernels.tune.__main__ import check, choosable, listed, main
from mstdistill.kernels.tune.candidates import TARGETS, Candidate, builds_of, candidates, refusal
from mstdistill.kernels.tune.problems import elements_of
from mstdistill.kernels.tune.search import GAIN, grouped, search, table_of

H100 = model.MACHINES["sm_90"]
WAIT_FOR_MEMORY = [kernel for kernel in tiles.KERNELS if not kernel.startswith("attend")]
# A block of four warps that reads and writes 4 KB, 16 bytes at a time.
FACTS: dict[str, Any] = {"threads": 128, "registers": 32, "shared": 0, "instructions": 60, "ld": {16: 2}, "st": {16: 2},
                         "tiles": {"ld": 4096, "st": 4096}}  # fmt: skip


def seconds(elements: int = 2048, total: int = 1 << 24, **changes: Any) -> float:
    return model.seconds(H100, [{**FACTS, **changes}], elements, total)


def test_the_model_is_a_copy_where_nothing_else_costs() -> None:
    """4 bytes an element of a large array: the bandwidth's time, and little beyond it."""
    least = 4 * (1 << 24) / H100.bandwidth
    assert least <= seconds() <= 1.05 * least


def test_the_model_makes_each_cost_count() -> None:
    assert seconds(ld={2: 16}, st={2: 16}, instructions=400) > seconds()
    assert seconds(instructions=6000) > 2 * seconds()
    assert seconds(registers=255, tiles={"ld": 1024, "st": 7168}) > seconds(tiles={"ld": 1024, "st": 7168})
    assert seconds(shared=100_000, tiles={"ld": 1024, "st": 7168}) > seconds(tiles={"ld": 1024, "st": 7168})
    few = 132 * 2048  # a block for each multiprocessor: with larger ones half of them do nothing
    larger = {"tiles": {"ld": 8192, "st": 8192}, "ld": {16: 4}, "st": {16: 4}}
    assert seconds(4096, few, **larger) > seconds(2048, few)


def test_what_a_multiprocessor_holds() -> None:
    assert model.resident(H100, FACTS) == 16  # 64 warps
    assert model.resident(H100, {**FACTS, "registers": 128}) == 4
    assert model.resident(H100, {**FACTS, "shared": 75_000}) == 3
    assert model.resident(H100, {**FACTS, "threads": 32, "registers": 16}) == 32
    assert model.machine_of("sm_86") is model.MACHINES["sm_80"]
    assert model.machine_of("sm_120") is model.MACHINES["sm_100"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_ranking_makes_sense(target: str) -> None:
    """Kernels that wait for memory: what reads as wide as any in its group comes first, what reads narrow is behind."""
    builds, machine = listed(), model.machine_of(target)
    offered = choosable(target, list(tiles.KERNELS), builds)
    groups = grouped(offered, (target, "any"))
    assert set(groups) == {one.group for one in candidates()}

    def facts(one: Candidate) -> list[dict[str, Any]]:
        return [builds[b.name] for b in builds_of(one, target)]

    costs = [model.seconds(machine, facts(one), one.elements, elements_of(one)) for one in offered]
    assert costs == sorted(costs)
    behind = 0
    for name in groups:
        own = [one for one in offered if one.group == name and one.kernel in WAIT_FOR_MEMORY]
        wide = [max(share_of(f["ld"], 16, f["threads"], f["tiles"]["ld"]) for f in facts(one)) for one in own]
        if own and max(wide) > 0.5:
            assert wide[0] > 0.9 * max(wide), (name, own[0].name, wide)
            narrow = [place for place, share in enumerate(wide) if share == 0]
            assert all(place >= len(own) // 2 for place in narrow), (name, wide)
            behind += len(narrow)
    assert behind  # there are such candidates


def test_what_spills_or_does_not_fit_is_never_offered() -> None:
    builds = listed()
    refused = dict.fromkeys(TARGETS, 0)
    for target in TARGETS:
        offered = {one.name for one in choosable(target, list(tiles.KERNELS), builds)}
        for one in candidates():
            facts = [builds[b.name] for b in builds_of(one, target)]
            good = all(f["stack"] == 0 and f["registers"] <= 255 and not f["float_atomics"] for f in facts)
            assert (one.name in offered) <= good
            refused[target] += one.name not in offered
    assert all(refused.values())  # there are such candidates


def test_a_refusal_says_why() -> None:
    one = next(candidates())
    own = builds_of(one, "sm_90")
    table = {b.name: dict(listed()[b.name]) for b in own}
    assert refusal(own, table) == ""
    assert refusal(own, {}) == "not built"
    table[own[0].name]["stack"] = 8
    assert refusal(own, table) == "route_forward spills 8 bytes"
    table[own[0].name] |= {"stack": 0, "shared": 300_000}
    assert refusal(own, table) == "300000 of shared, limit 228000"
    other = builds_of(one, "sm_120")
    there = {b.name: {"stack": 0, "registers": 64, "shared": 110_000, "float_atomics": False} for b in other}
    assert refusal(other, there) == "110000 of shared, limit 101376"


def test_the_list_is_of_these_sources() -> None:
    assert check(0, 1) == []


@pytest.mark.slow
def test_the_list_is_what_the_compiler_makes() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "mstdistill.kernels.tune", "--check", "4"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-1000:]


def rows(size: int, *choices: int) -> list[Candidate]:
    return [Candidate("route", size, {"rows": rows, "warps": 4}, rows * size) for rows in choices]


def test_the_search_takes_what_is_faster_and_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = grouped([*rows(64, 8, 16, 64, 128), *rows(128, 8)], ("any",))
    assert [one.choice["rows"] for one in groups["route 64"].candidates] == [32, 8, 16, 64, 128]
    times = {32: 1.0, 8: 0.5, 16: 0.8, 64: 0.1, 128: 0.2}

    def measure(one: Candidate) -> tuple[float, list[Tensor]]:
        assert tiles.choose("route", one.size)["rows"] == one.choice["rows"]  # it is what a launch takes meanwhile
        if one.choice["rows"] == 64:
            raise RuntimeError("out of resource: shared memory\nmore")
        wrong = 2.0 if one.choice["rows"] == 128 else 1.0
        seconds = (
            times[one.choice["rows"]] if one.size == 64 else {16: 1.0, 8: 0.999 / GAIN + 0.002}[one.choice["rows"]]
        )
        return seconds, [torch.full((3,), wrong)]

    said: list[str] = []
    assert search(groups, measure, 60.0, said.append) == []
    first, second = groups["route 64"], groups["route 128"]
    assert first.best is not None
    assert first.best.choice["rows"] == 8
    assert second.best is None  # less than the gain
    assert list(first.wrong.values()) == ["out of resource: shared memory", "other numbers than the standing choice"]
    table = table_of(groups, "sm_90", ("any",))
    path = tmp_path / "tiles.json"
    path.write_text(json.dumps(table))
    before = [tiles.choose("route", 2**n, where=("sm_90", "any")) for n in range(1, 11)]
    monkeypatch.setenv("MSTDISTILL_TILES", str(path))
    after = [tiles.choose("route", 2**n, where=("sm_90", "any")) for n in range(1, 11)]
    strip = [[{k: v for k, v in one.items() if k != "to"} for one in found] for found in (before, after)]
    assert strip[1] == [*strip[0][:5], {"rows": 8, "warps": 4}, *strip[0][6:]]
    assert tiles.choose("route", 64, where=("sm_80", "any"))["rows"] == 32


def test_without_time_only_what_stands_is_timed() -> None:
    groups = grouped([*rows(64, 8, 16), *rows(128, 8)], ("any",))
    left = search(groups, lambda one: (1.0, []), 0.0, lambda line: None)
    assert left == ["route 64: rows=8 warps=4", "route 128: rows=8 warps=4", "route 64: rows=16 warps=4"]
    assert table_of(groups, "sm_90", ("any",)) == {}


@pytest.mark.skipif(not interpreted(), reason="times on the CPU are the interpreter's")
@pytest.mark.parametrize("kernel", tiles.KERNELS)
def test_every_group_can_be_timed(kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From end to end in the interpreter: each problem runs, and candidates compute what the standing choice does."""
    monkeypatch.setenv("MSTDISTILL_KERNELS", "triton")
    found = main(["--kernel", kernel, "--most", "1", "--budget", "600", "--out", str(tmp_path / "tiles.json")])
    assert found["wrong"] == {}
    assert all(len(times) == 2 for times in found["seconds"].values())
    tiles.read(tmp_path / "tiles.json")


def test_a_target_without_builds_is_a_line() -> None:
    with pytest.raises(SystemExit, match="--target sm_70: candidates are built for"):
        main(["--target", "sm_70"])


def test_ranks_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--kernel", "kd_rows"])
    said = capsys.readouterr().out
    assert "kd_rows half 1024 (standing: rows=1 warps=4)" in said
