"""Properties of distillation losses and of routing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mstdistill.kernels import kd_rows, load_balance, mixed_kd_rows, route, routed_kd_loss

SHAPES = st.tuples(st.integers(0, 5), st.integers(1, 5), st.integers(1, 7))


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 10**6), temperature=st.floats(0.5, 8))
def test_kd_properties(shape: tuple[int, int, int], seed: int, temperature: float) -> None:
    batch, teachers, classes = shape
    student = draw(seed, batch, classes).requires_grad_(True)
    z = draw(seed + 1, batch, teachers, classes)
    indices = route(draw(seed + 2, batch, teachers), teachers).indices
    loss = routed_kd_loss(student, z, indices, None, temperature)
    assert (loss >= -1e-12).all()
    mean = torch.stack([kd_rows(student, z[:, m], temperature) for m in range(teachers)]).mean(dim=0)
    assert torch.allclose(loss, mean, atol=1e-12)  # k = M is the plain mean
    shifted = kd_rows(student + 3.0, z[:, 0] - 2.0, temperature)
    assert torch.allclose(shifted, kd_rows(student, z[:, 0], temperature), atol=1e-10)
    (grad,) = torch.autograd.grad(loss.sum(), student)
    assert torch.allclose(grad.sum(dim=1), torch.zeros(batch, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(kd_rows(student, student, temperature), torch.zeros(batch, dtype=torch.float64), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), teachers=st.integers(1, 6))
def test_mixture_with_one_certain_teacher_is_that_teacher(seed: int, teachers: int) -> None:
    student, z = draw(seed, 4, 5), draw(seed + 1, 4, teachers, 5)
    sure = torch.zeros(4, teachers, dtype=torch.float64)
    sure[:, seed % teachers] = 1.0
    assert torch.allclose(mixed_kd_rows(student, z, sure), kd_rows(student, z[:, seed % teachers]), atol=1e-12)


def test_masked_classes_and_half_precision() -> None:
    reference = torch.tensor([[1.0, -torch.inf, 0.0]])
    loss = kd_rows(torch.zeros(1, 3), reference)
    assert torch.isfinite(loss).all()
    for dtype in (torch.float16, torch.bfloat16):
        learner = (1e4 * torch.randn(3, 5)).to(dtype)
        assert kd_rows(learner, learner).dtype == torch.float32
        assert kd_rows(learner, learner).abs().max() == 0


def test_ties_take_the_lowest_index() -> None:
    assert route(torch.zeros(2, 5), 3).indices.tolist() == [[0, 1, 2]] * 2


def test_starved_teacher_stays_finite() -> None:
    logits = torch.tensor([[0.0, -2000.0], [0.0, -2000.0]], requires_grad=True)
    loss = load_balance(route(logits, 1).log_probs, "KL")
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[:, 1].sum() < 0  # pulled up


def test_balance_is_lowest_when_uniform() -> None:
    assert abs(float(load_balance(route(torch.zeros(4, 3), 1).log_probs, "KL"))) < 1e-7
    assert abs(float(load_balance(route(torch.zeros(4, 3), 1).log_probs, "CV"))) < 1e-7
    assert float(load_balance(route(torch.tensor([[3.0, 0.0, 0.0]]), 1).log_probs, "KL")) > 0


@pytest.mark.parametrize(("call", "words"), [
    (lambda: route(torch.zeros(2, 3), 4), "k=4"),
    (lambda: kd_rows(torch.zeros(2, 3), torch.zeros(2, 3), 0.0), "temperature"),
    (lambda: kd_rows(torch.zeros(2, 3), torch.zeros(2, 4)), "shape"),
    (lambda: load_balance(torch.zeros(2, 3), "XX"), "'KL' or 'CV'"),
])  # fmt: skip
def test_wrong_arguments_say_which(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]
