"""Routing: the Triton form against float64, and properties of both forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mstdistill.kernels import Routing, gate, load_balance, route
from mstdistill.kernels.cpu import kd_small
from mstdistill.kernels.cpu import router as cpu
from mstdistill.kernels.router import LOWEST, route_reference, top_k

from .compare import DEVICE, DTYPES, differences, draw, jit

# (instances, teachers, k): single ones, no instance, odd sizes, k = M, the largest
FORMS = ["triton", "torch", "torch, many", "torch, many, columns"]
SIZES = [(1, 1, 1), (0, 3, 2), (5, 4, 1), (7, 3, 3), (700, 5, 2), (9, 130, 16), (3, 1024, 2)]


@pytest.fixture(params=FORMS)
def both_forms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Triton's kernels, then what a CPU runs: of many instances or few, in rows or in columns."""
    form, *how = request.param.split(", ")
    monkeypatch.setenv("MSTDISTILL_KERNELS", form)
    if "many" in how:
        monkeypatch.setattr(cpu, "SMALL", 0)
    if "columns" in how:
        monkeypatch.setattr(kd_small, "_WORTH", 1)
        monkeypatch.setattr(kd_small, "_VECTOR", 1)
    return str(form)


def outputs(routing: Routing) -> list[torch.Tensor]:
    # without a counted instance the log-sums are LOWEST, too large a number to compare gradients under
    sums = torch.where(routing.log_sums < LOWEST / 2, 0.0, routing.log_sums)
    return [routing.probs, sums, *([] if routing.balance is None else [routing.balance])]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("mode", "weighted"), [("KL", True), ("CV", False), ("", True), ("CV", True)])
def test_equals_float64(
    size: tuple[int, int, int], dtype: torch.dtype, tolerance: float, mode: str, weighted: bool, both_forms: str
) -> None:
    batch, teachers, k = size
    if torch.finfo(dtype).bits == 16 and teachers > 100 and mode != "KL":
        return  # one mode says enough about the large sizes in half precision
    weight = (draw(batch, scale=1.0) > -0.5).double() * 1.5 if weighted else None
    logits = draw(batch, teachers, dtype=dtype)
    errors = differences(
        lambda x: outputs(route(x, k, weight, mode)), lambda x: outputs(route_reference(x, k, weight, mode)), [logits]
    )
    assert max(errors) <= tolerance
    found, wanted = route(logits, k, weight, mode), route_reference(logits, k, weight, mode)
    assert torch.equal(found.indices, wanted.indices)
    assert torch.equal(found.counts, wanted.counts)


def test_blocks_add_up_to_the_same_bits(triton_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks, and a second launch that adds them up; twice the same bits."""
    monkeypatch.setattr(jit("router"), "tiles", lambda rows, teachers, where: (4, 8, 2, -(-rows // 8), 2))
    logits = draw(93, 6, dtype=torch.float32)
    first, second = route(logits, 2, None, "KL"), route(logits, 2, None, "KL")
    wanted = route_reference(logits.double(), 2, None, "KL")
    assert torch.equal(first.log_sums, second.log_sums)
    assert torch.equal(first.counts, wanted.counts)
    assert torch.allclose(first.log_sums.double(), wanted.log_sums, atol=1e-5)


@pytest.mark.parametrize("form", [route, route_reference])
def test_undefined_rows_are_defined(form: object, both_forms: str) -> None:
    inf, nan = float("inf"), float("nan")
    logits = torch.tensor(
        [[-inf, 1e4, -1e4, 0.0], [nan, 0.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0], [-inf, -inf, 1.0, -inf], [inf, 0.0, 0, 0]]
    ).to(DEVICE)
    routing: Routing = form(logits, 3)  # type: ignore[operator]
    assert routing.indices.tolist() == [[1, 3, 2], [0, 1, 2], [0, 1, 2], [2, 0, 1], [0, 1, 2]]
    assert routing.log_probs[1].isnan().all()
    assert torch.equal(routing.probs[0].cpu(), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    # a teacher that every instance leaves out is starved, not infinite
    starved = torch.tensor([[0.0, -inf], [1.0, -inf]], device=DEVICE, requires_grad=True)
    loss = form(starved, 1, None, "KL").balance  # type: ignore[operator]
    loss.backward()
    assert torch.isfinite(loss)
    assert starved.grad is not None
    assert torch.isfinite(starved.grad).all()
    # nobody counts
    nobody = form(torch.zeros(3, 2, device=DEVICE), 1, torch.zeros(3, device=DEVICE), "CV")  # type: ignore[operator]
    assert nobody.balance == 0
    assert nobody.counts.tolist() == [0, 0]


@pytest.mark.parametrize("kernels", ["triton", "torch"])
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(0, 20), teachers=st.integers(1, 9), seed=st.integers(0, 10**6), data=st.data())
def test_properties(rows: int, teachers: int, seed: int, data: st.DataObject, kernels: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSTDISTILL_KERNELS", kernels)
        k = data.draw(st.integers(1, teachers))
        logits = draw(rows, teachers, seed=seed)
        found = route(logits, k, None, "KL")
        shifted = route(logits + 5.0, k, None, "KL")
        order = torch.randperm(teachers, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        permuted = route(logits[:, order], k, None, "KL")
        assert torch.allclose(shifted.log_probs, found.log_probs, atol=1e-12)
        assert torch.equal(order[permuted.indices], found.indices)
        assert torch.equal(permuted.counts, found.counts[order])
        assert found.counts.sum() == rows * k
        if rows:
            assert torch.allclose(permuted.balance, found.balance, atol=1e-12)
            assert float(found.balance) >= -1e-12


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


def test_gate_as_one_map_keeps_both_layers_gradients() -> None:
    """Above the threshold the composite runs; its gradients are those of the two Linears."""
    batch, classes, teachers = 20, 64, 4
    x = draw(batch, classes)
    layers = [draw(*shape, scale=0.1) for shape in ((2 * classes, classes), (2 * classes,), (teachers, 2 * classes),
                                                    (teachers,))]  # fmt: skip

    def two(x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(torch.nn.functional.linear(x, w1, b1), w2, b2)

    assert max(differences(lambda *a: [gate(*a)], lambda *a: [two(*a)], [x, *layers])) < 1e-12
    small = [t[:3] if i == 0 else t for i, t in enumerate([x, *layers])]
    assert torch.equal(gate(*small), two(*small))


@pytest.mark.parametrize("form", ["torch", "triton"])
@pytest.mark.parametrize(("logits", "k", "weight", "balance", "words"), [
    (torch.zeros(2, 3), 4, None, "", "k=4"), (torch.zeros(2, 3), 0, None, "", "k=0"),
    (torch.zeros(2, 32), 17, None, "", "k=17"), (torch.zeros(2, 2000), 1, None, "", "2000 teachers"),
    (torch.zeros(3), 1, None, "", r"logits: shape \[3\]"), (torch.zeros(2, 3).int(), 1, None, "", "logits: dtype"),
    (torch.zeros(2, 3), 1, torch.ones(3), "", "weight: shape"), (torch.zeros(2, 3), 1, None, "XX", "'KL' or 'CV'"),
])  # fmt: skip
def test_wrong_arguments_say_which(
    form: str, logits: torch.Tensor, k: int, weight: torch.Tensor | None, balance: str, words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MSTDISTILL_KERNELS", form)
    with pytest.raises(ValueError, match=words):
        route(logits, k, weight, balance)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 6), teachers=st.integers(1, 7), seed=st.integers(0, 10**6), data=st.data())
def test_any_rows_are_ordered_as_a_stable_sort_orders_them(rows: int, teachers: int, seed: int,
                                                           data: st.DataObject) -> None:  # fmt: skip
    values = st.sampled_from([0.0, 1.0, 2.0, -1.0, float("-inf"), float("inf"), float("nan")])
    scores = torch.tensor([data.draw(st.lists(values, min_size=teachers, max_size=teachers)) for _ in range(rows)])
    for k in range(1, teachers + 1):
        wanted = scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]
        assert torch.equal(top_k(scores, k), wanted)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("wanted", ["probs", "balance", "both", "sums"])
def test_small_batches_have_second_derivatives(weighted: bool, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few instances on a CPU: the gradient may itself be differentiated."""
    monkeypatch.setenv("MSTDISTILL_KERNELS", "torch")
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0]).double() if weighted else None
    logits = draw(4, 3, dtype=torch.float64).requires_grad_()

    def part(x: torch.Tensor) -> torch.Tensor:
        found = route(x, 1, weight, "KL")
        assert found.balance is not None
        kinds = {"probs": found.log_probs.pow(2).sum(), "balance": found.balance, "sums": found.log_sums.pow(2).sum(),
                 "both": found.log_probs.pow(2).sum() + found.balance}  # fmt: skip
        return kinds[wanted]

    assert torch.autograd.gradcheck(part, (logits,))
    assert torch.autograd.gradgradcheck(part, (logits,))
