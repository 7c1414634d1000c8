"""The compiled kernels at real sizes: what the interpreter can't show. Needs torch, triton, numpy and pytest alone.

One command: `scripts/gpu_check.sh`, or `pytest -m gpu tests/gpu/test_kernels.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mstdistill.kernels import MaskWeights, distillation_loss, kd_rows, masked_reconstruction, route, routed_kd_loss
from mstdistill.kernels.mask import apply_mask, mask_values_reference
from mstdistill.kernels.routed_kd import distillation_loss_reference, kd_reference
from mstdistill.kernels.router import route_reference
from torch import Tensor

pytestmark = pytest.mark.gpu
GPU = "cuda"


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSTDISTILL_KERNELS", "triton")


def random(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 3.0, seed: int = 0) -> Tensor:
    g = torch.Generator(GPU).manual_seed(seed)
    return (scale * torch.randn(shape, generator=g, device=GPU)).to(dtype)


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Relative to the largest wanted value; NaN meets NaN."""
    a, b = found.detach().double(), wanted.detach().double()
    assert torch.equal(a.isnan(), b.isnan())
    error = (a - b).abs().nan_to_num(posinf=0.0).max() / b.abs().nan_to_num(posinf=0.0).max().clamp(min=1e-30)
    assert float(error) <= tolerance, float(error)


def gradients(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_(True) for x in leaves]
    loss = function(*leaves)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("size", [(1, 1, 1), (512, 4, 1), (4096, 64, 8), (65536, 128, 2), (1000, 1024, 16)])
@pytest.mark.parametrize("mode", ["KL", "CV"])
def test_routing(size: tuple[int, int, int], mode: str) -> None:
    rows, teachers, k = size
    logits, outer = random(rows, teachers), random(rows, teachers, seed=1, scale=1e-3)
    weight = (random(rows, seed=2) > -2).float()

    def total(call: Any) -> Callable[[Tensor], Tensor]:
        def loss(x: Tensor) -> Tensor:
            found = call(x, k, weight.to(x.dtype), mode)
            return found.balance + (found.probs * outer.to(x.dtype)).sum()

        return loss

    for a, b in zip(
        gradients(total(route), [logits]), gradients(total(route_reference), [logits.double()]), strict=True
    ):
        close(a, b, 2e-4)
    found, wanted = route(logits, k, weight), route_reference(logits, k, weight)
    assert (found.indices == wanted.indices).float().mean() > 0.9999  # ties after rounding may fall either way
    assert found.counts.sum() == wanted.counts.sum() == k * int(weight.sum())


def test_the_second_stage_sees_every_block() -> None:
    """A race in the two-stage reduction would move bits between runs."""
    logits = random(65536, 96)
    first = route(logits, 2, None, "KL")
    for _ in range(200):
        again = route(logits, 2, None, "KL")
        assert torch.equal(again.log_sums, first.log_sums)
        assert torch.equal(again.counts, first.counts)
        assert torch.equal(again.balance, first.balance)  # type: ignore[arg-type]


KD = [(512, 4, 10, 1), (512, 4, 141, 2), (4096, 8, 1000, 4), (64, 4, 4096, 2), (600, 2, 32000, 2), (32, 4, 151936, 1)]


@pytest.mark.parametrize("size", KD)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.bfloat16, 1e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("weighted", [False, True])
def test_distillation(size: tuple[int, int, int, int], dtype: torch.dtype, tolerance: float, weighted: bool) -> None:
    rows, teachers, classes, k = size
    student, z = random(rows, classes, dtype=dtype), random(rows, teachers, classes, dtype=dtype, seed=1)
    indices = random(rows, teachers, seed=2).topk(k).indices
    label = torch.randint(classes, (rows,), device=GPU)
    label[::7] = -100
    weights = [random(rows, k, seed=3).softmax(dim=1)] if weighted else []

    def loss(call: Any) -> Callable[..., Tensor]:
        return lambda s, *w: call(s, z.to(s.dtype), indices, w[0] if w else None, label, temperature=2.0).loss.sum()

    found = gradients(loss(distillation_loss), [student, *weights])
    wanted = gradients(loss(distillation_loss_reference), [student.double(), *(w.double() for w in weights)])
    for a, b in zip(found, wanted, strict=True):
        close(a, b, tolerance)


@pytest.mark.parametrize("mixture", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dense(mixture: bool, layout: torch.memory_format) -> None:
    student = random(3, 41, 120, 161).to(memory_format=layout)
    table = random(9, 4, 41, 120, 161, dtype=torch.float16, seed=1)
    rows, indices = torch.tensor([8, 0, 3], device=GPU), torch.tensor([[0, 3], [1, 2], [2, 0]], device=GPU)
    label = torch.randint(41, (3, 120, 161), device=GPU)
    weights = random(3, 4 if mixture else 2, seed=3).softmax(dim=1)

    def loss(call: Any) -> Callable[..., Tensor]:
        return lambda s, w: call(
            s, table.to(s.dtype) if s.dtype == torch.float64 else table, None if mixture else indices, w, label, rows,
            4.0, mixture, ignore_index=0,
        ).loss.sum()  # fmt: skip

    found = gradients(loss(distillation_loss), [student, weights])
    wanted = gradients(loss(distillation_loss_reference), [student.double(), weights.double()])
    for a, b in zip(found, wanted, strict=True):
        close(a, b, 1e-4)


def test_a_table_beyond_two_to_the_thirty_one() -> None:
    """Offsets are 64 bits wide: the last rows of a table of 2.4e9 logits."""
    count = 600_000
    table = torch.zeros(count, 4, 1000, dtype=torch.float16, device=GPU)
    table[-2:] = random(2, 4, 1000, dtype=torch.float16)
    student, rows = random(2, 1000, seed=1), torch.tensor([count - 2, count - 1], device=GPU)
    indices = torch.tensor([[3], [2]], device=GPU)
    close(routed_kd_loss(student, table, indices, rows=rows), distillation_loss_reference(
        student, table[-2:].clone(), indices).loss, 1e-4)  # fmt: skip


@pytest.mark.parametrize("classes", [4, 5000])
def test_hazards(classes: int) -> None:
    inf, nan = float("inf"), float("nan")
    student, teacher = random(6, classes), random(6, classes, seed=1)
    student[0, 0], teacher[0, 1] = 1e4, 1e4
    student[1], teacher[1] = 7.0, 7.0
    student[2, 1], teacher[2, 1] = -inf, -inf
    teacher[3, 1] = nan
    student[4, 2], teacher[4, 2] = -inf, 5.0
    student[5, 3] = nan
    loss = kd_rows(student, teacher)
    assert loss.isnan().tolist() == [False, False, False, True, False, True]
    assert loss.isinf().tolist() == [False, False, False, False, True, False]
    close(loss[:3], kd_reference(student.double(), teacher.double(), 4.0)[:3], 1e-4)
    outside = routed_kd_loss(student[:2], teacher[:2].unsqueeze(1), torch.tensor([[10**9], [-1]], device=GPU))
    assert outside.isnan().all()
    logits = random(3, 9)
    logits[1, 4] = nan
    routing = route(logits, 3)
    assert routing.indices[1].tolist() == [0, 1, 2]
    assert routing.log_probs[1].isnan().all()


@pytest.mark.parametrize("size", [(64, 596, 99), (32, 320, 53), (6, 512, 85), (5, 84, 14), (2, 100, 170), (3, 70, 250)])
@pytest.mark.parametrize(("precision", "tolerance"), [("ieee", 2e-4), ("tf32", 2e-2), ("bf16", 1e-1)])
def test_mask(size: tuple[int, int, int], precision: str, tolerance: float) -> None:
    batch, width, head = size
    hidden = 3 * head
    layers = [torch.nn.Linear(width, width * hidden), torch.nn.MultiheadAttention(hidden, 3, batch_first=True),
              torch.nn.Linear(hidden, 1)]  # fmt: skip
    for layer in layers:
        layer.to(GPU)
    found = MaskWeights.of(*layers)  # type: ignore[arg-type]
    names = [name for name in MaskWeights.__dataclass_fields__ if name not in ("num_heads", "in_proj_bias")]
    leaves = [getattr(found, name).detach() for name in names]
    feature, outer = random(batch, width, scale=1.0), random(batch, width, scale=1.0, seed=1)
    bias = found.in_proj_bias.detach()

    def loss(fast: bool) -> Callable[..., Tensor]:
        def call(feature: Tensor, *parameters: Tensor) -> Tensor:
            own = dict(zip(names, parameters, strict=True))
            weights = MaskWeights(**own, in_proj_bias=bias.to(feature.dtype), num_heads=3)
            if fast:
                out = masked_reconstruction(feature, weights, precision=precision)
            else:
                out = apply_mask(feature, mask_values_reference(feature, weights))
            return (out * outer.to(out.dtype)).sum()

        return call

    wanted = gradients(loss(False), [feature.double(), *(x.double() for x in leaves)])
    for a, b in zip(gradients(loss(True), [feature, *leaves]), wanted, strict=True):
        close(a, b, tolerance)


def test_graphs_and_the_compiler() -> None:
    """One captured step, replayed on other numbers; and torch.compile's default backend."""
    student = random(256, 10).requires_grad_(True)
    teachers, scores = random(1000, 4, 10, seed=1), random(256, 4, seed=2).requires_grad_(True)
    rows = torch.arange(256, device=GPU)

    def step() -> list[Tensor]:
        routing = route(scores, 2, None, "KL")
        assert routing.balance is not None
        loss = routed_kd_loss(student, teachers, routing.indices, rows=rows).sum() + routing.balance
        return [loss, *torch.autograd.grad(loss, [student, scores])]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        held = step()
    for seed in range(3):
        with torch.no_grad():
            student.copy_(random(256, 10, seed=10 + seed))
            scores.copy_(random(256, 4, seed=20 + seed))
            rows.copy_(torch.randint(1000, (256,), device=GPU))
        graph.replay()
        for a, b in zip(held, step(), strict=True):
            assert torch.equal(a, b)
    found = torch.compile(step, fullgraph=True)()
    for a, b in zip(found, step(), strict=True):
        close(a, b, 1e-5)
