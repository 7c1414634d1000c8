"""Bernoulli distillation: the Triton and CPU forms against float64, hazards, and properties of all forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mstdistill.kernels import bernoulli_distillation, bernoulli_kd, bernoulli_kd_rows
from mstdistill.kernels.bernoulli_kd import bernoulli_distillation_reference, bernoulli_kd_reference
from torch import Tensor

from .compare import DEVICE, DTYPES, TRITON, differences, draw, jit

bernoulli = jit("bernoulli")

# "blocks": rows wider than a tile, whose sums are put together; "cpu-many": what many rows take on a CPU
FORMS = [*(("triton", "blocks") if TRITON else ()), "cpu", "cpu-many"]
# (instances, teachers, classes, chosen)
SIZES = [(1, 1, 1, 1), (0, 2, 5, 1), (3, 4, 11, 2), (70, 3, 9, 3)]
# weights, mixture, label, cache rows, scales, class weights: each argument alone and together
ARGUMENTS = [
    (0, 0, 0, 0, 0, 0),
    (1, 0, 1, 1, 1, 1),
    (1, 1, 1, 1, 1, 0),
    (0, 1, 0, 0, 0, 0),
    (0, 0, 1, 0, 0, 0),
    (0, 0, 1, 1, 1, 0),
]


def take(form: str, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("MSTDISTILL_KERNELS", "torch" if form.startswith("cpu") else "triton")
    if form == "cpu-many":
        patch.setattr(bernoulli_kd, "SMALL", 0)
    if form == "blocks":
        patch.setattr(bernoulli, "LARGEST", 4)


def arguments(size: tuple[int, int, int, int], given: tuple[int, ...]) -> dict[str, Any]:
    batch, teachers, classes, chosen = size
    weights, mixture, label, cache, scales, balanced = given
    g = torch.Generator().manual_seed(sum(size))
    picks = [torch.randperm(teachers, generator=g)[:chosen] for _ in range(batch)]
    out: dict[str, Any] = {"mixture": bool(mixture), "temperature": 2.5}
    if not mixture:
        out["indices"] = torch.stack(picks) if picks else torch.zeros(0, chosen, dtype=torch.int64)
    if weights:
        out["weights"] = torch.rand(batch, teachers if mixture else chosen, generator=g, dtype=torch.float64)
    if label:
        out["label"] = torch.randint(-1, 2, (batch, classes), generator=g)
        if scales:  # of mixed instances
            out["label"] = out["label"] * torch.rand(batch, classes, generator=g, dtype=torch.float64)
    if cache:
        out["rows"] = torch.randint(batch + 3, (batch,), generator=g)
    if scales:
        out["kd_scale"] = torch.rand(batch, generator=g, dtype=torch.float64)
        if label:
            out["task_scale"] = torch.rand(batch, generator=g, dtype=torch.float64)
    if balanced:
        out["class_weights"] = torch.rand(2, classes, generator=g, dtype=torch.float64)
    return {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in out.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_equals_float64(
    form: str, size: tuple[int, int, int, int], dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(form, monkeypatch)
    for chosen in ARGUMENTS if dtype == torch.float64 else (*ARGUMENTS[1:3], ARGUMENTS[-1]):
        batch, teachers, classes, _ = size
        rest = arguments(size, chosen)
        weights = [rest.pop("weights")] if "weights" in rest else []
        student = draw(batch, classes, dtype=dtype)
        table = draw(batch + 3 if "rows" in rest else batch, teachers, classes, dtype=dtype)
        reports: list[Tensor] = []

        def call(function: Any, student: Tensor, *weights: Tensor, table: Tensor = table, rest: Any = rest,
                 reports: list[Tensor] = reports) -> list[Tensor]:  # fmt: skip
            found = function(student, table.to(student.dtype), weights=weights[0] if weights else None, **rest)
            reports.append(torch.stack([found.kd, found.task]).double())
            return [found.loss]

        errors = differences(
            lambda *a: call(bernoulli_distillation, *a), lambda *a: call(bernoulli_distillation_reference, *a),
            [student, *weights],
        )  # fmt: skip
        assert max(errors) <= tolerance, (chosen, errors)
        assert torch.allclose(reports[0], reports[1], rtol=tolerance, atol=tolerance)


def test_the_definition_is_the_textbook_s() -> None:
    """Two-class divergences by torch's own functions, and its binary cross entropy with class weights."""
    student, teacher, temperature = draw(6, 5), draw(6, 5, seed=1), 3.0
    p, q = torch.sigmoid(teacher / temperature), torch.sigmoid(student / temperature)
    both = [torch.stack([x, 1 - x], dim=2).clamp(min=1e-300) for x in (p, q)]
    wanted = temperature**2 * F.kl_div(both[1].log(), both[0], reduction="none").sum(dim=2).mean(dim=1)
    assert torch.allclose(bernoulli_kd_reference(student, teacher, temperature), wanted, rtol=1e-12)
    label = torch.randint(0, 2, (6, 5), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    weights = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    each = F.binary_cross_entropy_with_logits(student, label.double(), reduction="none")
    each = each * torch.where(label == 1, weights[1], weights[0])
    hidden = label.masked_fill(torch.eye(6, 5, device=DEVICE).bool(), -1)
    found = bernoulli_distillation_reference(student, teacher.unsqueeze(1), label=hidden, class_weights=weights)
    assert torch.allclose(found.task, (each * (hidden >= 0)).sum(dim=1), rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_both_sides_of_a_pair_learn(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take(form, monkeypatch)
    pair = [draw(3, 11, seed=seed) for seed in (0, 1)]
    pair[1][0, :3] = 0.0  # where the sign turns
    errors = differences(lambda a, b: [bernoulli_kd_rows(a, b, 2.0)], lambda a, b: [bernoulli_kd_reference(a, b, 2.0)],
                         pair)  # fmt: skip
    assert max(errors) < 1e-12
    leaf = pair[1].clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(bernoulli_kd_rows(pair[0], leaf, 2.0).sum(), leaf)
    p = torch.sigmoid(leaf / 2.0)
    assert torch.allclose(grad, p * (1 - p) * (leaf - pair[0]) / 11, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weighted", [False, True])
def test_gaps_are_left_out(form: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against each instance's own teachers one by one; what a missing one says doesn't matter."""
    take(form, monkeypatch)
    student, teachers = draw(5, 7), draw(5, 4, 7, seed=1)
    label = (draw(5, 7, seed=2) > 0).long()
    indices = torch.tensor([[0, 3], [-1, -1], [2, -1], [-1, 1], [1, 0]], device=DEVICE)
    weights, scale = [draw(5, 2, scale=1.0).abs()] if weighted else [], draw(5, scale=1.0).abs()

    def plainly(student: Tensor, *weights: Tensor) -> list[Tensor]:
        rows = []
        for b, row in enumerate(indices.tolist()):
            there = [i for i, m in enumerate(row) if m >= 0]
            share = weights[0][b] if weights else [1.0 / max(1, len(there))] * 2
            own = [bernoulli_kd_reference(student[b : b + 1], teachers[b : b + 1, row[i]], 3.0)[0] * share[i]
                   for i in there]  # fmt: skip
            task = F.binary_cross_entropy_with_logits(student[b], label[b].to(student), reduction="sum")
            rows.append(sum(own, student[b].sum() * 0.0) * scale[b] + task)
        return [torch.stack(rows)]

    def fast(student: Tensor, *weights: Tensor) -> list[Tensor]:
        return [bernoulli_distillation(student, teachers, indices, weights[0] if weights else None, label,
                                       temperature=3.0, kd_scale=scale, gaps=True).loss]  # fmt: skip

    assert max(differences(fast, plainly, [student, *weights])) < 1e-11


@pytest.mark.parametrize("form", FORMS)
def test_a_mixture_of_nobody_teaches_nothing(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take(form, monkeypatch)
    student, teachers = draw(3, 6).requires_grad_(True), draw(3, 3, 6, seed=1)
    weights = torch.tensor([[0.3, 0.0, 0.7], [0.0] * 3, [0.2, 0.2, 0.6]], dtype=torch.float64, device=DEVICE)
    found = bernoulli_distillation(student, teachers, None, weights, mixture=True, temperature=2.0, gaps=True)
    assert found.loss[1] == found.kd[1] == 0
    mixed = torch.einsum("bm,bmc->bc", weights, teachers)
    alone = bernoulli_kd_reference(student, mixed, 2.0)
    assert torch.allclose(found.loss[[0, 2]], alone[[0, 2]], atol=1e-12)
    (grad,) = torch.autograd.grad(found.loss.sum(), [student])
    assert (grad[1] == 0).all()
    assert (grad[[0, 2]].abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_hazards_are_defined(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large logits, equal ones, certain teachers, NaN: as in float64; a bad index is a NaN loss, not a wild read."""
    take(form, monkeypatch)
    inf, nan = float("inf"), float("nan")
    student = torch.tensor([[1e4, -1e4, 0], [7, 7, 7], [1, -inf, inf], [1, 2, 3], [0, 1, -inf], [0, 0, nan]])
    teacher = torch.tensor([[-1e4, 1e4, 3], [7, 7, 7], [2, -inf, inf], [1, nan, 2], [0, -inf, 2], [1, 2, 3]])
    student, teacher = student.to(DEVICE), teacher.to(DEVICE)
    for dtype in (torch.float32, torch.bfloat16):
        a, b = student.to(dtype), teacher.to(dtype)
        errors = differences(lambda x, b=b: [bernoulli_kd_rows(x, b)],
                             lambda x, b=b: [bernoulli_kd_reference(x, b.double(), 4.0)], [a])  # fmt: skip
        assert max(errors) <= (1e-5 if dtype == torch.float32 else 1e-2)
        loss = bernoulli_kd_rows(a, b)
        assert loss.isnan().tolist() == [False, False, False, True, False, True]
        assert loss.isinf().tolist() == [False, False, False, False, True, False]  # it excludes what is taught
        assert loss[1] == 0
    label = torch.tensor([[0, 1, 0], [1, 1, -1], [0, 0, 1], [0, 2, 0], [-1, -1, -1], [1, 0, -1]]).to(DEVICE)
    task = bernoulli_distillation(student, torch.zeros(6, 1, 3, device=DEVICE), label=label).task
    assert torch.allclose(task[:3], torch.tensor([2e4 + 0.6931, 0.00182, 1.3133], device=DEVICE), rtol=2e-3)
    assert task.isnan().tolist() == [False, False, False, True, False, False]  # 2 is no label
    assert task[4] == 0
    if form.startswith("cpu"):
        return  # indices are looked at
    monkeypatch.setattr("mstdistill.kernels.routed_kd.check_indices", lambda *a: None)
    loss = bernoulli_distillation(student[:2], teacher[:2].unsqueeze(1), torch.tensor([[0], [1]]).to(DEVICE)).loss
    assert loss.isnan().tolist() == [False, True]


@pytest.mark.parametrize("form", FORMS)
def test_nearly_certain_classes_keep_their_digits(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both are sure of the same the divergence is small, and in float32 as exact as a large one."""
    take(form, monkeypatch)
    teacher = torch.tensor([[-20.0], [20.0], [-60.0], [-9.0], [9.0]], device=DEVICE)
    student = torch.tensor([[-18.0], [18.0], [-40.0], [-12.0], [5.0]], device=DEVICE)
    wanted = bernoulli_kd_reference(student.double(), teacher.double(), 1.0)
    assert (wanted > 0).all()
    assert torch.allclose(bernoulli_kd_rows(student, teacher, 1.0).double(), wanted, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_layouts_and_half_precision_gradients(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strided and expanded inputs, labels of bytes, and float16 gradients that would underflow unscaled."""
    take(form, monkeypatch)
    student, teachers = draw(5, 8, 3).transpose(1, 2)[:, 1], draw(1, 4, 3, 8).expand(5, -1, -1, -1)[:, :, 1]
    indices = torch.tensor([[0, 1]], device=DEVICE).expand(5, -1)
    label = torch.randint(-1, 2, (8, 5), dtype=torch.int8, generator=torch.Generator().manual_seed(0)).to(DEVICE).t()
    found, wanted = (f(student, teachers, indices, label=label).loss
                     for f in (bernoulli_distillation, bernoulli_distillation_reference))  # fmt: skip
    assert torch.allclose(found, wanted, atol=1e-12)
    half = draw(4, 6, dtype=torch.float16).requires_grad_(True)
    scale = torch.full((4,), 1e-7, device=DEVICE)
    loss = bernoulli_distillation(half, draw(4, 1, 6, dtype=torch.float16), kd_scale=scale).loss.sum() * 2.0**20
    loss.backward()
    assert half.grad is not None
    assert half.grad.abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_teachers_may_be_missing(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot of nobody has no part; an instance with nobody has the task's loss alone."""
    take(form, monkeypatch)
    student, teachers = draw(3, 5), draw(3, 4, 5)
    label = torch.ones(3, 5, dtype=torch.int64, device=DEVICE)
    indices = torch.tensor([[0, 2], [1, -1], [-1, -1]], device=DEVICE)
    found = bernoulli_distillation(student, teachers, indices, label=label, gaps=True)
    pairs = [bernoulli_kd_rows(student[b : b + 1], teachers[b : b + 1, m]) for b, m in ((0, 0), (0, 2), (1, 1))]
    wanted = torch.stack([(pairs[0] + pairs[1])[0] / 2, pairs[2][0], torch.zeros_like(pairs[0][0])])
    assert torch.allclose(found.kd, wanted)
    assert torch.allclose(found.loss, wanted + found.task)
    weights = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.float64, device=DEVICE)
    mixed = bernoulli_distillation(student, teachers, weights=weights, mixture=True, gaps=True)
    assert mixed.kd[2] == mixed.loss[2] == 0
    assert torch.allclose(mixed.kd[1], bernoulli_kd_rows(student[1:2], teachers[1:2, 3])[0])


@settings(max_examples=20, deadline=None)
@given(form=st.sampled_from(["reference", *FORMS]),
       shape=st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 9)), seed=st.integers(0, 10**6),
       temperature=st.sampled_from([0.5, 1.0, 4.0, 8.0]))  # fmt: skip
def test_properties(form: str, shape: tuple[int, int, int], seed: int, temperature: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        take("cpu" if form == "reference" else form, patch)
        function: Any = bernoulli_distillation_reference if form == "reference" else bernoulli_distillation
        batch, teachers, classes = shape
        student, z = draw(batch, classes, seed=seed).requires_grad_(True), draw(batch, teachers, classes, seed=seed + 1)
        loss = function(student, z, temperature=temperature).loss
        assert (loss >= -1e-12).all()
        mean = torch.stack([bernoulli_kd_rows(student, z[:, m], temperature) for m in range(teachers)]).mean(dim=0)
        assert torch.allclose(loss, mean, atol=1e-11)
        # yes and no change places; classes are alike in any order, and twice as many of the same mean the same
        assert torch.allclose(function(-student, -z, temperature=temperature).loss, loss, atol=1e-11)
        twice = function(torch.cat([student, student], 1).flip(1), torch.cat([z, z], 2).flip(2),
                         temperature=temperature).loss  # fmt: skip
        assert torch.allclose(twice, loss, atol=1e-11)
        same = function(student, student.detach().unsqueeze(1), temperature=temperature).loss
        assert torch.allclose(same, loss.new_zeros(batch), atol=1e-12)
        sure = torch.zeros(batch, teachers, dtype=torch.float64, device=DEVICE)
        sure[:, seed % teachers] = 1.0
        alone = bernoulli_kd_rows(student, z[:, seed % teachers], temperature)
        mixed = function(student, z, weights=sure, mixture=True, temperature=temperature).loss
        assert torch.allclose(mixed, alone, atol=1e-11)


STUDENT, TEACHERS = torch.zeros(2, 3), torch.zeros(2, 4, 3)
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 0.0}, "temperature=0.0"),
    ({"student": torch.zeros(2, 3, 4, 4)}, r"student: shape \[2, 3, 4, 4\]; must be \[B, C\]"),
    ({"teachers": torch.zeros(2, 4, 5)}, "teachers: shape"),
    ({"indices": torch.tensor([[4], [0]])}, "indices: holds 4"),
    ({"label": torch.zeros(2, dtype=torch.int64)}, r"label: torch.int64 \[2\]; must be numbers \[2, 3\]"),
    ({"class_weights": torch.zeros(3)}, r"class_weights: torch.float32 \[3\]; must be floating \[2, 3\]"),
]


@pytest.mark.parametrize("form", ["torch", "triton"])
@pytest.mark.parametrize(("changes", "words"), WRONG)
def test_wrong_arguments_say_which(
    form: str, changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MSTDISTILL_KERNELS", form)
    with pytest.raises(ValueError, match=words):
        bernoulli_distillation(**{"student": STUDENT, "teachers": TEACHERS, **changes})
