"""The operators as torch sees them: opcheck, gradcheck, torch.compile, autocast, second derivatives, where they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mstdistill.kernels import (
    MaskWeights,
    bernoulli_distillation,
    distillation_loss,
    launch,
    masked_reconstruction,
    route,
)
from mstdistill.kernels.routed_kd import distillation_loss_reference
from torch import Tensor

from .compare import DEVICE, TRITON, draw, jit
from .test_mask import layers

if not TRITON:
    pytest.skip("operators are of Triton's forms", allow_module_level=True)
apply_mask, bernoulli, kd = jit("apply_mask"), jit("bernoulli"), jit("kd")
mask, router = jit("mask"), jit("router")

pytestmark = pytest.mark.usefixtures("triton_kernels")


def learns(*shape: int, seed: int = 0) -> Tensor:
    return draw(*shape, seed=seed, scale=1.0).requires_grad_(True)


INDICES = torch.tensor([[0, 1], [2, 0]], device=DEVICE)
LABEL = torch.tensor([1, -100], device=DEVICE)
ROUTED = (
    learns(2, 4),
    draw(2, 3, 4),
    None,
    INDICES,
    learns(2, 2),
    LABEL,
    None,
    None,
    2.0,
    False,
    -100,
    True,
    True,
    False,
)
MIXED = (learns(2, 4), draw(2, 3, 4), None, None, learns(2, 3), None, None, None, 2.0, True, -100, True, True, False)
DENSE = (learns(2, 3, 5), learns(2, 1, 3, 5), None, None, None, None, None, None, 2.0, False, -100, True, False, True)
SEVERAL = (learns(2, 4), draw(2, 3, 4), None, INDICES, learns(2, 2), torch.tensor([[1, 0, -1, 1]] * 2, device=DEVICE),
           None, None, 2.0, False, draw(2, 4).abs(), True, True, False)  # fmt: skip
PACKED = learns(2, 5, 2 * 2 * 16 + 8)
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "route": (router.route, (learns(5, 3), torch.ones(5, device=DEVICE), None, 2, "KL")),
    "route, plain": (router.route, (learns(5, 3), None, None, 1, "")),
    "distil": (kd.distil, ROUTED),
    "distil, mixture": (kd.distil, MIXED),
    "distil, dense pair": (kd.distil, DENSE),
    "distil_bernoulli": (bernoulli.distil_bernoulli, SEVERAL),
    "scale_rows_": (kd.scale_rows_, (draw(3, 4), draw(3))),
    "scalar_attention": (mask.scalar_attention, (PACKED, 2, 16, "ieee")),
    "apply_mask": (apply_mask.apply, (learns(2, 2, 5), learns(1), learns(2, 5, 3))),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    op, arguments = CALLS[name]
    utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
    # `distil` itself hands out the gradient that its backward scales in place, which a traced graph can't return as
    # well; the public functions keep it to themselves, and test_compiles_without_a_graph_break runs those
    if name in ("route", "scalar_attention", "apply_mask"):
        utils.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(op, arguments, test_utils=utils)


def functions() -> dict[str, tuple[Callable[..., Tensor], list[Tensor]]]:
    """The public functions as scalar-valued ones of float64 tensors that learn."""
    # drawn out here: a generator can't be traced
    parameters, probs_weight, out_weight, teachers = (
        layers(3, 4, 2, 0.5),
        draw(4, 3, seed=9),
        draw(2, 3, seed=5),
        draw(2, 3, 4),
    )

    def routed(logits: Tensor) -> Tensor:
        found = route(logits, 2, None, "KL")
        assert found.balance is not None
        return (found.probs * probs_weight).sum() + found.balance

    def distilled(student: Tensor, weights: Tensor) -> Tensor:
        return distillation_loss(student, teachers, INDICES, weights, LABEL, temperature=2.0).loss.sum()

    def mixed(student: Tensor, weights: Tensor) -> Tensor:
        return distillation_loss(student, teachers, None, weights, mixture=True).loss.sum()

    def bernoulli(student: Tensor, weights: Tensor) -> Tensor:
        return bernoulli_distillation(student, teachers, INDICES, weights, SEVERAL[5], temperature=2.0).loss.sum()

    def masked(feature: Tensor, *parameters: Tensor) -> Tensor:
        out = masked_reconstruction(feature, MaskWeights(*parameters, 2), precision="ieee")
        return (out * out_weight).sum()

    return {
        "route": (routed, [learns(4, 3)]),
        "distil": (distilled, [learns(2, 4), learns(2, 2)]),
        "bernoulli": (bernoulli, [learns(2, 4), learns(2, 2)]),
        "mixture": (mixed, [learns(2, 4), learns(2, 3)]),
        "mask": (masked, [learns(2, 3), *(p.clone().requires_grad_(True) for p in parameters)]),
    }


@pytest.mark.parametrize("name", ["route", "distil", "bernoulli", "mixture", "mask"])
def test_first_derivatives_and_no_second_ones(name: str) -> None:
    """Along a random direction against finite differences (torch's gradcheck runs backward twice, which the
    distillation losses refuse); a second derivative is refused in words, also as a part of what is differentiated."""
    function, arguments = functions()[name]
    grads = torch.autograd.grad(function(*arguments), arguments)
    direction = [draw(*x.shape, seed=77 + i, scale=1.0) for i, x in enumerate(arguments)]
    slope = sum((g * v).sum() for g, v in zip(grads, direction, strict=True))
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (function(*(x + sign * step * v for x, v in zip(arguments, direction, strict=True)))
                         for sign in (1, -1))  # fmt: skip
    assert torch.allclose((ahead - behind) / (2 * step), torch.as_tensor(slope), rtol=1e-6, atol=1e-8)
    (grad, *_) = torch.autograd.grad(function(*arguments), arguments, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.autograd.grad((grad**2).sum() + arguments[0].sum(), arguments, allow_unused=True)


def test_backward_twice_is_refused_in_words() -> None:
    student = learns(2, 4)
    loss = distillation_loss(student, draw(2, 3, 4)).loss.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="runs once, it scales its gradient in place"):
        loss.backward()


@pytest.mark.parametrize("name", ["route", "distil", "bernoulli", "mixture", "mask"])
def test_compiles_without_a_graph_break(name: str) -> None:
    function, arguments = functions()[name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(*arguments), arguments)
    wanted = torch.autograd.grad(function(*arguments), arguments)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_under_autocast() -> None:
    """Half-precision logits of an autocast network: losses in float32, gradients back through the network."""
    network = torch.nn.Linear(4, 3).to(DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        logits = network(draw(5, 4, dtype=torch.float32))
        assert logits.dtype == torch.bfloat16
        loss = distillation_loss(logits, draw(5, 2, 3, dtype=torch.float32)).loss
        routing = route(logits, 1, None, "CV")
        assert routing.balance is not None
        total = loss.sum() + routing.balance
    assert loss.dtype == routing.log_probs.dtype == torch.float32
    total.backward()
    assert network.weight.grad is not None
    assert torch.isfinite(network.weight.grad).all()


def test_gradients_that_nobody_wants_are_not_computed() -> None:
    student, teachers = draw(3, 4), draw(3, 2, 4)
    assert distillation_loss(student, teachers).loss.requires_grad is False
    with torch.no_grad():
        loss = distillation_loss(student.requires_grad_(True), teachers).loss
    assert loss.requires_grad is False
    assert torch.allclose(loss, distillation_loss_reference(student, teachers).loss)


class TestChoice:
    """Which form runs, and what is said where it can't."""

    x = torch.zeros(2, 2)

    def test_automatic_is_plain_off_the_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MSTDISTILL_KERNELS", "auto")
        assert launch.use_triton(self.x) is False

    def test_unknown_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MSTDISTILL_KERNELS", "cuda")
        with pytest.raises(ValueError, match="MSTDISTILL_KERNELS='cuda': must be one of auto, triton, torch"):
            route(self.x, 1)

    def test_insisting_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        with pytest.raises(ValueError, match="move them to a GPU, or set TRITON_INTERPRET=1"):
            route(self.x, 1)

    def test_triton_missing_or_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launch, "triton_missing", lambda: "triton 3.1.0 is older than 3.6")
        with pytest.raises(ValueError, match=r"MSTDISTILL_KERNELS=triton: triton 3\.1\.0 is older"):
            route(self.x, 1)
        monkeypatch.setenv("MSTDISTILL_KERNELS", "auto")
        assert route(self.x, 1).indices.tolist() == [[0], [0]]

    def test_an_old_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        launch.gpu_unsupported.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        assert "7.5; the kernels need 8.0" in launch.gpu_unsupported(torch.device("cuda"))
        launch.gpu_unsupported.cache_clear()

    def test_two_devices(self) -> None:
        with pytest.raises(ValueError, match="must be on one device"):
            distillation_loss(self.x, torch.zeros(2, 1, 2, device="meta"))
