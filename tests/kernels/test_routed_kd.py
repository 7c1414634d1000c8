"""Distillation losses: the Triton forms against float64, hazards, and properties of both forms."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mstdistill.kernels import distillation_loss, kd_rows, load_balance, mixed_kd_rows, route, routed_kd_loss, tiles
from mstdistill.kernels.cpu import kd as cpu_kd
from mstdistill.kernels.cpu import kd_small
from mstdistill.kernels.routed_kd import distillation_loss_reference, kd_reference
from torch import Tensor

from .compare import DEVICE, DTYPES, TRITON, differences, draw, jit

kd_dense, kd_wide, kd_tile = jit("kd_dense"), jit("kd_wide"), jit("kd_rows")

FORMS = [*(("rows", "wide", "sliced", "dense") if TRITON else ()), "cpu", "cpu-columns", "cpu-blocks",
         "cpu-blocks-columns", "cpu-dense"]  # fmt: skip
# (instances, teachers, classes, chosen)
SIZES = [(1, 1, 1, 1), (0, 2, 5, 1), (2, 4, 11, 2), (1, 3, 9, 3)]
# weights, mixture, label, cache rows, scales: each argument alone and together
ARGUMENTS = [(0, 0, 0, 0, 0), (1, 0, 1, 1, 1), (1, 1, 1, 1, 1), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0)]


def take(form: str, patch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """Make small sizes take a form that is meant for large ones; returns what follows [B, C] in a logit's shape."""
    patch.setenv("MSTDISTILL_KERNELS", "torch" if form.startswith("cpu") else "triton")
    patch.setattr(cpu_kd, "_BLOCK", 16)
    if form.startswith("cpu-blocks"):
        patch.setattr(kd_small, "SMALL", 0)
    if form.endswith("columns"):  # however few rows there are
        patch.setattr(kd_small, "_WORTH", 1)
        patch.setattr(kd_small, "_VECTOR", 1)
        patch.setattr(kd_small, "FEW", 24)  # as no processor has it
    if form in ("wide", "sliced"):
        patch.setattr(kd_tile, "LARGEST", 0)
        patch.setitem(tiles._tried, "kd_wide", [{"block": 8, "warps": 4}])
        patch.setattr(kd_wide, "FEW_ROWS", 0 if form == "wide" else 256)
    if form == "dense":
        patch.setitem(tiles._tried, "kd_dense", [{"pixels": 16, "warps": 4}])
    return (3, 7) if form.endswith("dense") else ()


def arguments(size: tuple[int, int, int, int], tail: tuple[int, ...], given: tuple[int, ...]) -> dict[str, Any]:
    batch, teachers, classes, chosen = size
    weights, mixture, label, cache, scales = given
    g = torch.Generator().manual_seed(sum(size))
    picks = [torch.randperm(teachers, generator=g)[:chosen] for _ in range(batch)]
    out: dict[str, Any] = {"mixture": bool(mixture), "temperature": 2.5}
    if not mixture:
        out["indices"] = torch.stack(picks) if picks else torch.zeros(0, chosen, dtype=torch.int64)
    if weights:
        out["weights"] = torch.rand(batch, teachers if mixture else chosen, generator=g, dtype=torch.float64)
    if label:
        out["label"] = torch.randint(classes, (batch, *tail), generator=g)
        out["label"].view(-1)[:1] = -100
    if cache:
        out["rows"] = torch.randint(batch + 3, (batch,), generator=g)
    if scales:
        out["kd_scale"] = torch.rand(batch, generator=g, dtype=torch.float64)
        if label:
            out["task_scale"] = torch.rand(batch, generator=g, dtype=torch.float64)
    return {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in out.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_equals_float64(
    form: str, size: tuple[int, int, int, int], dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail = take(form, monkeypatch)
    for chosen in ARGUMENTS if dtype == torch.float64 else ARGUMENTS[1:3]:
        batch, teachers, classes, _ = size
        rest = arguments(size, tail, chosen)
        weights = [rest.pop("weights")] if "weights" in rest else []
        student = draw(batch, classes, *tail, dtype=dtype)
        table = draw(batch + 3 if "rows" in rest else batch, teachers, classes, *tail, dtype=dtype)
        reports: list[Tensor] = []

        def call(function: Any, student: Tensor, *weights: Tensor, table: Tensor = table, rest: Any = rest,
                 reports: list[Tensor] = reports) -> list[Tensor]:  # fmt: skip
            found = function(student, table.to(student.dtype), weights=weights[0] if weights else None, **rest)
            reports.append(torch.stack([found.kd, found.task]).double())
            return [found.loss]

        errors = differences(
            lambda *a: call(distillation_loss, *a), lambda *a: call(distillation_loss_reference, *a),
            [student, *weights],
        )  # fmt: skip
        assert max(errors) <= tolerance, (chosen, errors)
        assert torch.allclose(reports[0], reports[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_both_sides_of_a_pair_learn(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tail = take(form, monkeypatch)
    pair = [draw(3, 11, *tail, seed=seed) for seed in (0, 1)]
    errors = differences(lambda a, b: [kd_rows(a, b, 2.0)], lambda a, b: [kd_reference(a, b, 2.0)], pair)
    assert max(errors) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_hazards_are_defined(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large logits, equal ones, left-out classes, NaN: as in float64; a bad index is a NaN loss, not a wild read."""
    tail = take(form, monkeypatch)
    inf, nan = float("inf"), float("nan")
    student = torch.tensor(
        [[1e4, -1e4, 0, 5], [7, 7, 7, 7], [1, -inf, 2, 3], [1, 2, 3, 4], [0, 1, -inf, 2], [0, 0, 0, nan]]
    )
    teacher = torch.tensor(
        [[-1e4, 1e4, 3, 5], [7, 7, 7, 7], [2, -inf, 1, 0], [1, nan, 2, 3], [0, -inf, 2, 1], [1, 2, 3, 4]]
    )
    if tail:
        student, teacher = (x[:, :, None, None].expand(-1, -1, *tail).contiguous() for x in (student, teacher))
    student, teacher = student.to(DEVICE), teacher.to(DEVICE)
    for dtype in (torch.float32, torch.bfloat16):
        a, b = student.to(dtype), teacher.to(dtype)
        errors = differences(lambda x, b=b: [kd_rows(x, b)], lambda x, b=b: [kd_reference(x, b.double(), 4.0)], [a])
        assert max(errors) <= (1e-5 if dtype == torch.float32 else 1e-2)
        loss = kd_rows(a, b)
        assert loss.isnan().tolist() == [False, False, False, True, False, True]
        assert loss.isinf().tolist() == [False, False, False, False, True, False]  # the student excludes what is taught
    if form.startswith("cpu"):
        return  # indices are looked at
    outside = torch.tensor([[0], [1]]).to(DEVICE)
    monkeypatch.setattr("mstdistill.kernels.routed_kd.check_indices", lambda *a: None)
    loss = routed_kd_loss(student[:2], teacher[:2].unsqueeze(1), outside)
    assert loss.isnan().tolist() == [False, True]


@pytest.mark.parametrize("form", FORMS)
def test_what_a_teacher_rules_out_a_student_may_exclude(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probability that is 0 in float32, of a finite logit: the student's class there may be masked."""
    tail = take(form, monkeypatch)
    student, teacher = (
        torch.tensor([[0.5, float("-inf"), 1.0]] * 2),
        torch.tensor([[1.0, -4000.0, 2.0], [0.0, 0.0, 1.0]]),
    )
    if tail:
        student, teacher = (x[:, :, None, None].expand(-1, -1, *tail).contiguous() for x in (student, teacher))
    loss = kd_rows(student.to(DEVICE), teacher.to(DEVICE))
    wanted = kd_reference(student.to(DEVICE), teacher.to(DEVICE), 4.0)
    assert loss.isinf().tolist() == [False, True]
    assert torch.allclose(loss[0], wanted[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", [form for form in FORMS if form in ("rows", "cpu")])
def test_layouts_and_half_precision_gradients(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strided and expanded inputs, and float16 gradients that would underflow unscaled."""
    take(form, monkeypatch)
    student, teachers = draw(5, 8, 3).transpose(1, 2), draw(1, 4, 3, 8).expand(5, -1, -1, -1)
    maps, rest = draw(2, 5, 6, 7).to(memory_format=torch.channels_last), draw(2, 3, 5, 6, 7)
    indices = torch.tensor([[0, 1]], device=DEVICE).expand(5, -1)
    for s, z, i in ((student[:, 1], teachers[:, :, 1], indices), (maps, rest, indices[:2])):
        assert torch.allclose(routed_kd_loss(s, z, i), distillation_loss_reference(s, z, i).loss, atol=1e-12)
    half = draw(4, 6, dtype=torch.float16).requires_grad_(True)
    scale = torch.full((4,), 1e-7, device=DEVICE)
    loss = distillation_loss(half, draw(4, 1, 6, dtype=torch.float16), kd_scale=scale).loss.sum() * 2.0**20
    loss.backward()
    assert half.grad is not None
    assert half.grad.abs().max() > 1e-3


@pytest.mark.parametrize("form", [form for form in FORMS if form in ("rows", "cpu")])
def test_an_outer_gradient_of_one_leaves_the_stored_gradient(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take(form, monkeypatch)
    student, teachers = draw(6, 5).requires_grad_(True), draw(6, 2, 5)
    grads = [torch.autograd.grad((distillation_loss(student, teachers).loss * f).sum(), student)[0]
             for f in (1.0, torch.tensor([1.0, 2, 1, 0, -1, 1], dtype=torch.float64, device=DEVICE))]  # fmt: skip
    factor = torch.tensor([1.0, 2, 1, 0, -1, 1], dtype=torch.float64, device=DEVICE).unsqueeze(1)
    assert torch.equal(grads[0] * factor, grads[1])


@settings(max_examples=20, deadline=None)
@given(form=st.sampled_from(["torch", *FORMS]),
       shape=st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 9)), seed=st.integers(0, 10**6),
       temperature=st.sampled_from([0.5, 1.0, 4.0, 8.0]))  # fmt: skip
def test_properties(form: str, shape: tuple[int, int, int], seed: int, temperature: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        tail = take(form, patch) if form != "torch" else ()
        batch, teachers, classes = shape
        student = draw(batch, classes, *tail, seed=seed).requires_grad_(True)
        z = draw(batch, teachers, classes, *tail, seed=seed + 1)
        indices = route(draw(batch, teachers, seed=seed + 2), teachers).indices
        loss = routed_kd_loss(student, z, indices, None, temperature)
        assert (loss >= -1e-12).all()
        mean = torch.stack([kd_rows(student, z[:, m], temperature) for m in range(teachers)]).mean(dim=0)
        assert torch.allclose(loss, mean, atol=1e-11)  # k = M is the plain mean
        order = torch.randperm(teachers, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        back = order.argsort()
        permuted = routed_kd_loss(student, z[:, order], back[indices], None, temperature)
        assert torch.allclose(permuted, loss, atol=1e-11)
        shifted = kd_rows(student + 300.0, z[:, 0] - 200.0, temperature)
        assert torch.allclose(shifted, kd_rows(student, z[:, 0], temperature), atol=1e-9)
        (grad,) = torch.autograd.grad(loss.sum(), student)
        assert torch.allclose(grad.sum(dim=1), torch.zeros_like(grad.sum(dim=1)), atol=1e-10)
        assert torch.allclose(kd_rows(student, student, temperature), loss.new_zeros(batch), atol=1e-12)
        sure = torch.zeros(batch, teachers, dtype=torch.float64, device=DEVICE)
        sure[:, seed % teachers] = 1.0
        alone = kd_rows(student, z[:, seed % teachers], temperature)
        assert torch.allclose(mixed_kd_rows(student, z, sure, temperature), alone, atol=1e-11)


def test_masked_classes_and_half_precision() -> None:
    reference = torch.tensor([[1.0, -torch.inf, 0.0]])
    loss = kd_rows(torch.zeros(1, 3), reference)
    assert torch.isfinite(loss).all()
    for dtype in (torch.float16, torch.bfloat16):
        learner = (1e4 * torch.randn(3, 5)).to(dtype)
        assert kd_rows(learner, learner).dtype == torch.float32
        assert kd_rows(learner, learner).abs().max() == 0


STUDENT, TEACHERS, CHOSEN = torch.zeros(2, 3), torch.zeros(2, 4, 3), torch.zeros(2, 1, dtype=torch.int64)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 0.0}, "temperature=0.0"),
    ({"student": STUDENT.int()}, "student: dtype"),
    ({"student": torch.zeros(3)}, r"student: shape \[3\]"),
    ({"teachers": torch.zeros(2, 4, 5)}, "teachers: shape"),
    ({"teachers": torch.zeros(3, 4, 3)}, r"must be \[2, M, 3\]"),
    ({"teachers": torch.zeros(2, 0, 3)}, "there is none"),
    ({"indices": torch.zeros(2, dtype=torch.int64)}, "indices: shape"),
    ({"indices": CHOSEN.int()}, "indices: dtype torch.int32; must be int64"),
    ({"indices": CHOSEN + 4}, "indices: holds 4; must be between 0 and 3"),
    ({"indices": CHOSEN - 1}, "indices: holds -1"),
    ({"indices": CHOSEN, "weights": torch.zeros(2, 2)}, "weights: shape"),
    ({"label": torch.zeros(2)}, "label: dtype"),
    ({"label": torch.zeros(3, dtype=torch.int64)}, r"label: shape \[3\]"),
    ({"rows": torch.tensor([0, 9])}, "rows: holds 9"),
    ({"mixture": True, "indices": CHOSEN}, "mixture"),
    ({"kd_scale": torch.zeros(3)}, "kd_scale: shape"),
]


@pytest.mark.parametrize(("form", "case"), itertools.product(["torch", "triton"], WRONG))
def test_wrong_arguments_say_which(
    form: str, case: tuple[dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSTDISTILL_KERNELS", form)
    changes, words = case
    with pytest.raises(ValueError, match=words):
        distillation_loss(**{"student": STUDENT, "teachers": TEACHERS, **changes})


def test_wrong_pair_and_balance_say_which() -> None:
    with pytest.raises(ValueError, match="one shape"):
        kd_rows(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="'KL' or 'CV'"):
        load_balance(torch.zeros(2, 3), "XX")
