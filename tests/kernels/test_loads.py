"""Kernels that wait for memory read and write 16 bytes an instruction where sizes are multiples: in the disassembly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from mstdistill.kernels.loads import accesses, instructions, share_of, tile_bytes
from mstdistill.kernels.routed_kd import distillation_loss, distillation_loss_reference
from mstdistill.kernels.router import route, route_reference

# Builds whose sizes are multiples, and the bytes a thread takes at once. 512 halves over 128 threads are 4 each.
WIDE = {
    "router.route_forward R=1 MP=1024 alone": 16, "router.route_backward R=256 MP=8": 16,
    "kd_rows.kd_rows k=1 R=4 C=256": 16, "kd_rows.kd_rows k=4 cached, labelled R=1 C=1024": 16,
    "kd_wide.kd_slices k=1": 16, "kd_wide.kd_wide k=1 whole rows": 16, "kd_dense.kd_dense k=1 PB=512": 8,
    "bernoulli.bernoulli k=1 R=1 C=1024": 16, "kd.scale_rows ": 16,
    "apply_mask.apply_mask maps": 16, "apply_mask.apply_mask_backward maps": 16,
    "apply_mask.apply_mask tokens": 16, "apply_mask.apply_mask_backward tokens": 16,
}  # fmt: skip
# Of an odd number of positions: nothing can be wide.
NARROW = "apply_mask.apply_mask small maps"


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """In a process of its own: here Triton's kernels are defined for the interpreter."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "mstdistill.kernels.loads", *WIDE, NARROW]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    counts = {kind: [{int(k): n for k, n in row[kind].items()} for row in rows] for kind in ("ld", "st")}
    return {row["build"].removesuffix(" sm_90"): {**row, "ld": ld, "st": st}
            for row, ld, st in zip(rows, counts["ld"], counts["st"], strict=True)}  # fmt: skip


def test_kernels_that_wait_for_memory_read_wide(found: dict[str, dict[str, Any]]) -> None:
    assert {*WIDE, NARROW} <= found.keys()
    for name, width in WIDE.items():
        # the rest: numbers of a row or a feature, one for several elements
        share = share_of(found[name]["ld"], width, found[name]["threads"], found[name]["tiles"]["ld"])
        assert share >= 0.85, (name, share, found[name])
        if "slices" not in name:  # statistics, a number each
            assert max(found[name]["st"]) >= min(width, 8), (name, found[name])


def test_what_is_no_multiple_reads_narrow(found: dict[str, dict[str, Any]]) -> None:
    assert max(found[NARROW]["ld"]) < 16
    assert share_of(found[NARROW]["ld"], 16, found[NARROW]["threads"], found[NARROW]["tiles"]["ld"]) == 0


def test_accesses_are_read_from_the_text() -> None:
    text = """
        /*0240*/              @!P0 LDG.E.128 R4, [R2.64] ;
        /*0250*/                   LDG.E.U16.CONSTANT R8, desc[UR4][R2.64] ;
        /*0260*/              @P1  LDGSTS.E.BYPASS.128 [R9], [R2.64] ;
        /*0270*/                   LDGDEPBAR ;
        /*0280*/                   STG.E.64 [R2.64], R4 ;
        /*0290*/                   STG.E [R2.64], R4 ;
        /*02a0*/                   NOP;
"""
    assert accesses(text) == {"ld": {2: 1, 16: 2}, "st": {4: 1, 8: 1}}
    assert len(instructions(text)) == 6
    ttgir = """%x = tt.load %p, %m, %c : tensor<1x1024x!tt.ptr<bf16>, #blocked> loc(#loc1)
    %f = tt.load %q : !tt.ptr<i64> loc(#loc2)
    tt.store %p, %y, %m : tensor<1x1024x!tt.ptr<f32>, #blocked> loc(#loc3)"""
    assert tile_bytes(ttgir) == {"ld": 2048 + 8, "st": 4096}
    # half of the tile comes wide; scalars that every thread reads, twice even, are 8 bytes of it
    assert share_of({2: 4, 8: 2, 16: 1}, 16, threads=64, tiles=2048) == 0.5


def test_alignment_is_what_every_row_keeps() -> None:
    pytest.importorskip("triton")
    from mstdistill.kernels.jit.base import alignment

    x = torch.empty(8, 4, 40)
    assert alignment((40,), x) == 8
    assert alignment((40,), x[:, :, 1:]) == 8  # where it starts is the pointer's own affair
    assert alignment((39,), x[:, :, 1:]) == 1
    assert alignment((40,), x.transpose(1, 2)) == 1  # the lanes' axis isn't contiguous
    assert alignment((8,), torch.empty(1, 8).expand(4, 8)) == 8
    assert alignment((16,), torch.empty(16, 16).t()) == 1
    assert alignment((40,), torch.empty(3, 6, 40).transpose(1, 2), lane=1) == 8


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("size", [16, 32])
def test_layouts_whose_multiples_mislead_give_the_same_numbers(size: int) -> None:
    """Transposed, expanded and sliced: a unit stride where the lanes don't run, strides of 0, an odd start."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    draw = torch.Generator().manual_seed(size)
    square = torch.randn(size, size + 16, generator=draw, dtype=torch.float64).to(device)
    for logits in (square[:, :size].t(), square[:, 1 : size + 1], square[:1, :size].expand(size, -1)):
        found, wanted = route(logits, 2, None, "KL"), route_reference(logits.contiguous(), 2, None, "KL")
        torch.testing.assert_close(found.log_probs, wanted.log_probs)
        teachers = logits.unsqueeze(1).expand(-1, 2, -1)
        student = logits.flip(1) if logits.stride(0) == 0 else logits * 0.5
        kd = distillation_loss(student, teachers, wanted.indices % 2).loss
        exact = distillation_loss_reference(student.contiguous(), teachers.contiguous(), wanted.indices % 2).loss
        torch.testing.assert_close(kd, exact)
