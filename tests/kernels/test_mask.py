"""The collapsed mask against the plain form: `nn.MultiheadAttention` with every weight and projection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mstdistill.kernels import mask as mask_file
from mstdistill.kernels import apply_mask
from torch import Tensor

from mstdistill.teachers.mask import MaskNet1d, MaskNet2d, MaskNetTokens, count_parameters, plan_mask


def plain(module: MaskNet1d, vector: Tensor) -> Tensor:
    tokens = module.embed(vector).view(len(vector), module.width, module.hidden)
    attended, _ = module.mha(tokens, tokens, tokens)
    return torch.sigmoid(module.fc(attended)).squeeze(2)


def randomised(module: MaskNet1d) -> MaskNet1d:
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return module.double()


SIZES = [(1, 1, 3, 3), (4, 7, 6, 3), (5, 20, 9, 3), (3, 24, 12, 3), (2, 33, 8, 4), (6, 5, 5, 1)]


@pytest.mark.parametrize(("batch", "width", "hidden", "heads"), SIZES)
def test_equals_plain_form_with_gradients(batch: int, width: int, hidden: int, heads: int) -> None:
    torch.manual_seed(batch + width)
    module = randomised(MaskNet1d(width, hidden, heads))
    x, weight = torch.randn(batch, width, dtype=torch.float64), torch.randn(batch, width, dtype=torch.float64)
    found, wanted = {}, {}
    for form, store in ((module.values, found), (lambda v: plain(module, v), wanted)):
        module.zero_grad()
        leaf = x.clone().requires_grad_(True)
        mask = form(leaf)
        (mask * weight).sum().backward()
        store.update({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
        store["x"], store["mask"] = leaf.grad, mask.detach()
    for name, expected in wanted.items():
        scale = expected.abs().max().clamp(min=1.0)
        assert (found[name] - expected).abs().max() <= 1e-11 * scale, name


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), chunk=st.integers(1, 2000), seed=st.integers(0, 10**6))
def test_chunks_change_nothing(rows: int, chunk: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(rows, 6, 4, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.randn(rows, 6, generator=g, dtype=torch.float64)
    whole = mask_file._ScalarAttention.apply(q, k, t)
    before = mask_file._CHUNK_ELEMENTS
    try:
        mask_file._CHUNK_ELEMENTS = chunk
        parts = mask_file._ScalarAttention.apply(q, k, t)
    finally:
        mask_file._CHUNK_ELEMENTS = before
    assert torch.equal(whole, parts)


def test_gradcheck_and_second_derivative_refused() -> None:
    q, k = (torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    t = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mask_file._ScalarAttention.apply, (q, k, t))
    (grad,) = torch.autograd.grad(mask_file._ScalarAttention.apply(q, k, t).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_large_scores_stay_finite() -> None:
    module = randomised(MaskNet1d(8, 6, 3))
    mask = module.values(torch.full((2, 8), 1e6, dtype=torch.float64))
    assert torch.isfinite(mask).all()


@pytest.mark.parametrize("shape", [(7,), (7, 1, 1), (7, 5, 6), (7, 2, 5, 6), (4, 7)])
def test_each_form_keeps_the_features_shape(shape: tuple[int, ...]) -> None:
    plan = plan_mask("tap", shape, hidden=6)
    module = plan.build()
    assert (
        sum(p.numel() for p in module.parameters())
        == plan.parameters
        == count_parameters(plan.width, plan.hidden, plan.kind)
    )
    feature = torch.randn(3, *shape)
    out = module(feature)
    assert out.shape == feature.shape
    ratio = out / feature
    assert (ratio > 0).all()
    assert (ratio < 1).all()
    assert isinstance(module, {"1d": MaskNet1d, "2d": MaskNet2d, "tokens": MaskNetTokens}[plan.kind])


def test_reconstruction_broadcasts_over_what_follows_the_width() -> None:
    mask = torch.tensor([[0.5, 2.0]])
    assert torch.equal(apply_mask(torch.ones(1, 2, 1, 3), mask)[0, :, 0, 0], mask[0])
    assert torch.equal(apply_mask(torch.ones(1, 5, 2), mask)[0, 4], mask[0])
