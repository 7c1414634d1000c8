"""What the comparison's methods gain on a CPU over the direct forms of their sums: forward and backward, in turns.

    python scripts/benchmark_baselines.py --out docs/results/baselines-cpu.json      (half a minute, one core)

Prints the table of docs/benchmarks.md. RKD's angles: products of all sides, as the paper writes them. OFA-KD's
branches: torch's convolutions, in both memory formats.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mstdistill.files import write_text
from mstdistill.methods.ofa import Projector
from mstdistill.methods.rkd import angle_loss
from mstdistill.methods.separable import Depthwise, Pointwise

REPEATS = 31


def direct_angles(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth-L1 of cosines by products of the normalised sides."""

    def cosines(e: Tensor) -> Tensor:
        sides = F.normalize(e.unsqueeze(0) - e.unsqueeze(1), dim=2)
        return sides @ sides.transpose(1, 2)

    return F.smooth_l1_loss(cosines(student), cosines(teacher))


def angles(batch: int, width: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Both forms of a batch's angles."""
    student, teacher = F.normalize(torch.randn(2, batch, width), dim=2)
    student.requires_grad_()
    return (lambda: direct_angles(student, teacher).backward()), (lambda: angle_loss(student, teacher).backward())


def branch(shape: tuple[int, int, int], memory_format: torch.memory_format) -> tuple[Callable[[], None], ...]:
    """Both forms of a branch on 64 features of this shape."""
    ours = Projector(shape, 10)
    plain = Projector(shape, 10)
    for module in plain.modules():
        if isinstance(module, (Depthwise, Pointwise)):
            module.forward = nn.Conv2d.forward.__get__(module)  # type: ignore[method-assign]
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(64, *shape).to(memory_format=memory_format).requires_grad_()
    nets: list[nn.Module] = [plain, ours]
    for net in nets:
        cast(Any, net).to(memory_format=memory_format)  # torch's releases differ in how they declare it
    assert torch.allclose(nets[0](x), nets[1](x), atol=1e-5)
    return tuple(lambda net=net: net(x).square().mean().backward() for net in nets)


def measure(name: str, forms: tuple[Callable[[], None], ...]) -> dict[str, Any]:
    """Median milliseconds of both forms."""
    taken: list[list[float]] = [[], []]
    for _ in range(REPEATS + 3):
        for form, times in zip(forms, taken, strict=True):
            start = time.perf_counter()
            form()
            times.append(1e3 * (time.perf_counter() - start))
    direct, here = (statistics.median(times[3:]) for times in taken)
    return {"case": name, "direct_ms": direct, "here_ms": here, "ratio": direct / here}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file of every figure")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [measure(f"RKD, angles of B={b}, d={d}", angles(b, d)) for b, d in ((64, 128), (128, 128), (256, 128))]
    formats = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
    rows += [measure(f"OFA-KD, a branch on {'x'.join(map(str, shape))}, {name}", branch(shape, kind))
             for shape in ((16, 8, 8), (32, 4, 4), (8, 8, 8)) for name, kind in formats.items()]  # fmt: skip
    print("| forward and backward, float32, one CPU core | direct form | here | ratio |\n| --- | --: | --: | --: |")
    for row in rows:
        print(f"| {row['case']} | {row['direct_ms']:.2f} ms | {row['here_ms']:.2f} ms | {row['ratio']:.1f}x |")
    if out is not None:
        facts = {"torch": torch.__version__, "machine": platform.machine(), "repeats": REPEATS}
        write_text(out, json.dumps({"facts": facts, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
