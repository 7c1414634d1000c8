"""Teachers that can't see an instance: against plain sums per instance in float64, and properties of both forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mstdistill.kernels import Routing, distillation_loss, kd_rows, load_balance, route
from mstdistill.kernels.router import LOWEST, balance_from_sums, route_reference
from torch import Tensor

from .compare import DEVICE, DTYPES, differences, draw, jit
from .test_routed_kd import FORMS, take

ROUTES = ["torch", *(["triton"] if jit("router") else [])]
# (instances, teachers, k): one teacher, no instance, odd sizes, k = M, the largest
SIZES = [(1, 1, 1), (0, 3, 2), (7, 3, 3), (700, 5, 2), (9, 130, 16), (3, 1024, 2)]


def masks(rows: int, teachers: int, seed: int = 0) -> Tensor:
    """[B, M] about two of three; the second instance is seen by nobody, the last teacher sees nothing."""
    seen = draw(rows, teachers, seed=seed + 31, scale=1.0) > -0.4
    seen[1:2] = False
    if teachers > 2:
        seen[:, -1] = False
    return seen


def outputs(routing: Routing) -> list[Tensor]:
    # a log-sum of nothing is LOWEST, too large a number to compare gradients under
    sums = torch.where(routing.log_sums < LOWEST / 2, 0.0, routing.log_sums)
    return [routing.probs, sums, *([] if routing.balance is None else [routing.balance])]


def plainly(logits: Tensor, k: int, weight: Tensor | None, balance: str, seen: Tensor) -> tuple[list[Tensor], Tensor]:
    """What `outputs` should be and the indices, one instance at a time."""
    teachers = logits.shape[1]
    probs, even = logits * 0.0, torch.zeros(teachers, dtype=logits.dtype, device=DEVICE)
    indices = torch.full((len(logits), k), -1, device=DEVICE)
    for row, (scores, here) in enumerate(zip(logits, seen, strict=True)):
        at = here.nonzero().squeeze(1)
        if len(at):
            probs = probs.index_put((torch.full_like(at, row), at), scores[at].softmax(dim=0))
            order = scores[at].sort(descending=True, stable=True).indices[:k]
            indices[row, : len(order)] = at[order]
            even[at] += (1.0 if weight is None else weight[row]) / len(at)
    sums = (probs if weight is None else probs * weight.unsqueeze(1)).sum(dim=0)
    out = [probs, torch.where(sums > 0, torch.where(sums > 0, sums, 1.0).log(), 0.0)]
    at = (even > 0).nonzero().squeeze(1)
    if balance == "KL":
        whole = even.sum().clamp(min=1e-300)
        out.append((even[at] / whole * (even[at] / sums[at]).log()).sum() / teachers)
    if balance == "CV":
        use = sums[at] / even[at]
        out.append(use.std() / use.mean() if len(at) > 1 else sums.sum() * 0.0)
    return out, indices


@pytest.mark.parametrize("form", ROUTES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("mode", "weighted"), [("KL", True), ("CV", False)])
def test_equals_instance_by_instance(
    form: str, size: tuple[int, int, int], dtype: torch.dtype, tolerance: float, mode: str, weighted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MSTDISTILL_KERNELS", form)
    batch, teachers, k = size
    if torch.finfo(dtype).bits == 16 and teachers > 100 and mode != "KL":
        return  # one mode says enough about the large sizes in half precision
    weight = (draw(batch, scale=1.0) > -0.5).double() * 1.5 if weighted else None
    logits, seen = draw(batch, teachers, dtype=dtype), masks(batch, teachers)
    errors = differences(
        lambda x: outputs(route(x, k, weight, mode, seen)), lambda x: plainly(x, k, weight, mode, seen)[0], [logits]
    )
    assert max(errors) <= tolerance
    found, indices = route(logits, k, weight, mode, seen), plainly(logits.double(), k, weight, mode, seen)[1]
    assert torch.equal(found.indices, indices)
    counted = torch.ones(batch, dtype=torch.bool, device=DEVICE) if weight is None else weight > 0
    wanted = torch.stack([(indices[counted] == m).sum() for m in range(teachers)])
    assert torch.equal(found.counts, wanted)


@pytest.mark.parametrize("form", ROUTES)
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 20), teachers=st.integers(1, 9), seed=st.integers(0, 10**6), data=st.data())
def test_properties(form: str, rows: int, teachers: int, seed: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSTDISTILL_KERNELS", form)
        k = data.draw(st.integers(1, teachers))
        mode = data.draw(st.sampled_from(["KL", "CV"]))
        cells = st.lists(st.booleans(), min_size=rows * teachers, max_size=rows * teachers)
        seen = torch.tensor(data.draw(cells), device=DEVICE).view(rows, teachers)
        logits = draw(rows, teachers, seed=seed).requires_grad_(True)
        found = route(logits, k, None, mode, seen)
        assert (found.probs[~seen] == 0).all()
        assert torch.allclose(found.probs.sum(dim=1), seen.any(dim=1).double(), atol=1e-12)
        there = found.indices >= 0
        assert torch.equal(there.sum(dim=1), seen.sum(dim=1).clamp(max=k))
        assert seen.gather(1, found.indices.clamp(min=0))[there].all()
        assert found.counts.sum() == there.sum()
        assert found.balance is not None
        assert float(found.balance.detach()) >= -1e-12
        (grad,) = torch.autograd.grad(found.balance + found.probs.square().sum(), logits)
        assert (grad[~seen] == 0).all()
        assert grad.isfinite().all()
        # what stands where a teacher sees nothing changes nothing
        other = route(logits.detach().masked_fill(~seen, math.nan), k, None, mode, seen)
        assert torch.equal(other.log_probs, found.log_probs)
        assert torch.equal(other.indices, found.indices)
        # everyone sees everything
        everyone = route(logits, k, None, mode, torch.ones_like(seen))
        plain = route(logits, k, None, mode)
        assert torch.allclose(everyone.log_probs, plain.log_probs, atol=1e-12)
        assert torch.allclose(everyone.balance, plain.balance, atol=1e-12)
        assert torch.equal(everyone.indices, plain.indices)
        # even routing over the teachers at hand is in balance
        level = route(torch.zeros_like(logits), k, None, mode, seen)
        assert abs(float(level.balance.detach())) < 1e-9


@pytest.mark.parametrize("form", ROUTES)
def test_parts_of_a_batch_balance_as_the_whole(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What processes add up: log-sums by logsumexp, even sums as they are."""
    monkeypatch.setenv("MSTDISTILL_KERNELS", form)
    logits, seen = draw(12, 4), masks(12, 4)
    parts = [route(logits[rows], 2, None, "", seen[rows]) for rows in (slice(0, 5), slice(5, 12))]
    sums = torch.stack([p.log_sums for p in parts]).logsumexp(dim=0)
    even = sum(p.even for p in parts if p.even is not None)
    for mode in ("KL", "CV"):
        whole = route(logits, 2, None, mode, seen)
        assert torch.allclose(balance_from_sums(sums, 0.0, mode, even), whole.balance, atol=1e-12)  # type: ignore[arg-type]
    full = route(logits, 2)
    assert torch.allclose(load_balance(full.log_probs), route(logits, 2, None, "KL").balance, atol=1e-12)


def test_other_choices_are_of_those_who_see() -> None:
    seen = torch.tensor([[True, False, True], [False, False, False]], device=DEVICE)
    routing = route(draw(2, 3), 2, None, "", seen)
    chosen = routing.choosing(torch.tensor([[1, 2], [0, 1]], device=DEVICE))
    assert chosen.indices.tolist() == [[-1, 2], [-1, -1]]
    assert chosen.counts.tolist() == [0, 0, 1]


@pytest.mark.parametrize("seen", [torch.ones(2, 3), torch.ones(3, 2, dtype=torch.bool)])
def test_a_wrong_mask_is_refused(seen: Tensor) -> None:
    with pytest.raises(ValueError, match=r"seen: torch\.\w+ \[\d, \d\]; must be bool \[2, 3\]"):
        route(torch.zeros(2, 3), 1, seen=seen)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weighted", [False, True])
def test_distillation_leaves_gaps_out(form: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tail = take(form, monkeypatch)
    batch, classes = 5, 7
    student, teachers = draw(batch, classes, *tail), draw(batch, 4, classes, *tail)
    label = torch.arange(batch, device=DEVICE).view(-1, *(1,) * len(tail)).expand(batch, *tail)
    indices = torch.tensor([[0, 3], [-1, -1], [2, -1], [-1, 1], [1, 0]], device=DEVICE)
    weights, scale = draw(batch, 2, scale=1.0).abs() if weighted else None, draw(batch, scale=1.0).abs()

    def plainly(student: Tensor, weights: Tensor | None) -> list[Tensor]:
        rows = []
        for b, row in enumerate(indices.tolist()):
            share = [1.0] * 2 if weights is None else list(weights[b])
            own = [kd_rows(student[b : b + 1], teachers[b : b + 1, m], 3.0) * share[i]
                   for i, m in enumerate(row) if m >= 0]  # fmt: skip
            kd = torch.stack(own).sum() if own else student[b].sum() * 0.0
            kd = kd / len(own) if own and weights is None else kd
            task = torch.nn.functional.cross_entropy(student[b : b + 1], label[b : b + 1], reduction="sum")
            rows.append(kd * scale[b] + task)
        return [torch.stack(rows)]

    def fast(student: Tensor, weights: Tensor | None) -> list[Tensor]:
        return [distillation_loss(student, teachers, indices, weights, label, temperature=3.0, kd_scale=scale,
                                  gaps=True).loss]  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSTDISTILL_KERNELS", "torch")
        wanted = differences(lambda *a: plainly(*a, *([] if weighted else [None])),
                             lambda *a: plainly(*a, *([] if weighted else [None])),
                             [student, *([] if weights is None else [weights])])  # fmt: skip
        assert max(wanted) == 0
    errors = differences(lambda *a: fast(*a, *([] if weighted else [None])),
                         lambda *a: plainly(*a, *([] if weighted else [None])),
                         [student, *([] if weights is None else [weights])])  # fmt: skip
    assert max(errors) < 1e-11


@pytest.mark.parametrize("form", FORMS)
def test_a_mixture_of_nobody_teaches_nothing(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tail = take(form, monkeypatch)
    student, teachers = draw(3, 6, *tail).requires_grad_(True), draw(3, 3, 6, *tail)
    seen = torch.tensor([[True, False, True], [False] * 3, [True] * 3], device=DEVICE)
    scores = draw(3, 3).requires_grad_(True)
    weights = route_reference(scores, 1, None, "", seen).probs
    found = distillation_loss(student, teachers, None, weights, mixture=True, temperature=2.0, gaps=True)
    assert found.loss[1] == 0
    assert found.kd[1] == 0
    some = torch.tensor([0, 2], device=DEVICE)
    pair = weights[0, [0, 2]].view(2, *(1,) * (student.dim() - 1))
    alone = kd_rows(student[:1], (teachers[0, [0, 2]] * pair).sum(dim=0, keepdim=True), 2.0)
    assert torch.allclose(found.loss[0], alone[0], atol=1e-11)
    grads = torch.autograd.grad(found.loss.sum(), [student, scores])
    assert (grads[0][1] == 0).all()
    assert (grads[1][1] == 0).all()
    assert (grads[1][some].abs().sum(dim=1) > 0).all()
