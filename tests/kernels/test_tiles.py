"""The launch table: another one is taken, gives the same numbers, and a broken one is a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mstdistill.kernels import distillation_loss, route
from mstdistill.kernels.tiles import KERNELS, PACKAGED, choose, names_of, read, trying

from .compare import DEVICE, TRITON, draw, jit


def test_the_nearest_device_that_knows_the_kernel_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"sm_90": {"route": [{"to": 8, "rows": 16, "warps": 2}]},
             "any": {"route": [{"rows": 32, "warps": 2}], "kd_rows half": [{"rows": 2, "warps": 8}]}}  # fmt: skip
    (tmp_path / "tiles.json").write_text(json.dumps(table))
    monkeypatch.setenv("MSTDISTILL_TILES", str(tmp_path / "tiles.json"))
    here, other = names_of("sm_90"), names_of("sm_80")
    assert [choose("route", size, where=here)["rows"] for size in (4, 8, 16)] == [16, 16, 32]
    assert choose("route", 4, where=other)["rows"] == 32
    assert choose("kd_rows", 64, "half", here)["rows"] == 2
    packaged = read(PACKAGED)["any"]
    assert choose("kd_rows", 4096, "float", here) == packaged["kd_rows"][-1]
    with trying("route", {"rows": 64, "warps": 1}):
        assert choose("route", 4, where=here)["rows"] == 64
    assert choose("route", 4, where=here)["rows"] == 16


def test_the_packaged_table_knows_every_size_of_every_kernel() -> None:
    largest = {"route": 1024, "kd_rows": 4096, "attend": 256, "attend_backward": 256}
    for kernel, (_, kinds) in KERNELS.items():
        for kind in kinds or ("",):
            for target in ("sm_80", "sm_89", "gfx942"):
                assert choose(kernel, largest.get(kernel, 1 << 30), kind, names_of(target, target == "sm_89"))


@pytest.mark.skipif(not TRITON, reason="no Triton")
def test_other_tiles_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a table says is what is launched: the rows of a tile are seen in the call, the numbers stay."""
    monkeypatch.setenv("MSTDISTILL_KERNELS", "triton")
    logits, teachers = draw(37, 6, dtype=torch.float32), draw(37, 2, 6, dtype=torch.float32)
    chosen = torch.zeros(37, 1, dtype=torch.int64, device=DEVICE)

    def numbers() -> tuple[torch.Tensor, torch.Tensor]:
        return route(logits, 2, None, "KL").log_probs, distillation_loss(logits, teachers, chosen).loss

    before = numbers()
    table = {"any": {"route": [{"rows": 4, "warps": 1}], "kd_rows": [{"rows": 8, "warps": 1}]}}
    (tmp_path / "tiles.json").write_text(json.dumps(table))
    monkeypatch.setenv("MSTDISTILL_TILES", str(tmp_path / "tiles.json"))
    launched = []
    kernel = jit("kd_rows")
    tiles: Callable[..., tuple[int, int, int]] = kernel.tiles
    monkeypatch.setattr(kernel, "tiles", lambda *given: launched.append(tiles(*given)) or launched[-1])
    for one, other in zip(before, numbers(), strict=True):
        torch.testing.assert_close(one, other)
    assert launched == [(8, 8, 1)]


@pytest.mark.parametrize(("content", "words"), [
    ("{", "can't be read as JSON"),
    ('{"any": {"rout": []}}', "any rout: no such kernel; it is one of route, kd_rows"),
    ('{"any": {"attend fp32": []}}', "no such kind; it is one of tf32"),
    ('{"any": {"route": [{"rows": 4}]}}', "must give rows, warps"),
    ('{"any": {"route": [{"rows": 0, "warps": 4}]}}', "whole numbers from 1"),
    ('{"any": {"route": [{"rows": 12, "warps": 4}]}}', "rows must be a power of two"),
    ('{"any": 3}', "must give devices, of each its kernels"),
    ('{"any": {"route": 4}}', "4 must give rows, warps"),
    ("[]", "must give devices, of each its kernels"),
])  # fmt: skip
def test_a_broken_table_is_a_line(content: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(content)
    monkeypatch.setenv("MSTDISTILL_TILES", str(path))
    with pytest.raises(ValueError, match=words) as caught:
        choose("route", 4)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
