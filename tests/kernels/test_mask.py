"""The collapsed mask against the plain form: `nn.MultiheadAttention` with every weight and projection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mstdistill.kernels import MaskWeights, apply_mask, mask_values, masked_reconstruction
from mstdistill.kernels import mask as mask_file
from mstdistill.kernels.mask import mask_values_reference
from torch import Tensor, nn

from mstdistill.teachers.mask import MaskNet1d, MaskNet2d, MaskNetTokens, count_parameters, plan_mask

from .compare import DEVICE, TRITON, differences, draw, jit


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


def layers(width: int, hidden: int, heads: int, std: float = 0.4) -> list[Tensor]:
    """A MaskNet's parameters in the order of `MaskWeights`."""
    shapes = [(width * hidden, width), (width * hidden,), (3 * hidden, hidden), (3 * hidden,), (hidden, hidden),
              (hidden,), (1, hidden), (1,)]  # fmt: skip
    return [draw(*shape, seed=i, scale=std) for i, shape in enumerate(shapes)]


# (batch, d, h, heads, what follows): single, no instance, several row blocks, padded and split heads, one wide head,
# maps, channels-last maps, tokens
CASES = [
    (1, 1, 3, 3, "vector"), (0, 5, 3, 3, "vector"), (2, 37, 18, 3, "vector"), (1, 9, 99, 1, "vector"),
    (1, 6, 300, 2, "vector"), (2, 20, 12, 3, "map"), (2, 16, 6, 3, "channels last"), (2, 18, 6, 3, "tokens"),
]  # fmt: skip


def feature_of(batch: int, width: int, kind: str) -> Tensor:
    if kind == "vector":
        return draw(batch, width, scale=1.0)
    if kind == "tokens":
        return draw(batch, 7, width, scale=1.0)
    maps = draw(batch, width, 4, 5, scale=1.0)
    return maps.to(memory_format=torch.channels_last) if kind == "channels last" else maps


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(part) for part in case))
@pytest.mark.parametrize(("dtype", "precision", "std", "tolerance"), [
    (torch.float64, "ieee", 0.4, 1e-11), (torch.float32, "ieee", 0.4, 1e-4), (torch.float32, "tf32", 0.1, 5e-3),
    (torch.float32, "bf16", 0.1, 6e-2),
])  # fmt: skip
def test_triton_form_equals_float64(
    case: tuple[int, int, int, int, str], dtype: torch.dtype, precision: str, std: float, tolerance: float,
    triton_kernels: None,
) -> None:  # fmt: skip
    batch, width, hidden, heads, kind = case
    feature, vector = feature_of(batch, width, kind), draw(batch, width, scale=1.0)
    parameters = layers(width, hidden, heads, std)

    def fast(feature: Tensor, vector: Tensor, *parameters: Tensor) -> list[Tensor]:
        out = masked_reconstruction(feature, MaskWeights(*parameters, heads), vector, precision)
        assert out.stride() == feature.stride()
        return [out]

    def plain(feature: Tensor, vector: Tensor, *parameters: Tensor) -> list[Tensor]:
        return [apply_mask(feature, mask_values_reference(vector, MaskWeights(*parameters, heads)))]

    errors = differences(fast, plain, [x.to(dtype) for x in (feature, vector, *parameters)])
    del errors[6]  # of the in-projection's bias: the keys' part has no effect
    assert max(errors) <= tolerance, errors


def test_masks_of_one_size_go_together(triton_kernels: None) -> None:
    several = [MaskWeights(*layers(9, 6, 3, 0.3 + 0.1 * i), 3) for i in range(3)]
    stacked, vector = MaskWeights.stack(several), draw(3, 4, 9)
    wanted = torch.stack([mask_values_reference(v, w) for v, w in zip(vector, several, strict=True)])
    assert torch.allclose(mask_values(vector, stacked), wanted, atol=1e-12)
    assert torch.allclose(masked_reconstruction(vector, stacked), vector * wanted, atol=1e-12)
    assert torch.allclose(mask_values_reference(vector, stacked), wanted, atol=1e-12)
    maps = draw(3, 4, 9, 2, 3)
    assert torch.allclose(masked_reconstruction(maps, stacked, vector), apply_mask(maps, wanted), atol=1e-12)


@pytest.mark.skipif(not TRITON, reason="compares with Triton's form")
@pytest.mark.parametrize("module", [MaskNet1d(9, 6, 3), MaskNet2d(6, 6, 3), MaskNetTokens(8, 6, 3)])
def test_modules_agree_in_both_forms(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    module = module.to(DEVICE)
    shape = {MaskNet1d: (3, 9, 1, 1), MaskNet2d: (3, 6, 2, 4, 5), MaskNetTokens: (3, 4, 8)}[type(module)]
    feature = draw(*shape, dtype=torch.float32)
    plain = module.eval()(feature)
    monkeypatch.setenv("MSTDISTILL_KERNELS", "triton")
    found = module(feature)
    assert found.shape == feature.shape
    assert torch.allclose(found, plain, atol=1e-5)


@pytest.mark.skipif(not TRITON, reason="tiles are of Triton's forms")
def test_every_head_width_has_a_padding() -> None:
    tiles = jit("mask")
    for width in range(1, tiles.MAX_HEAD + 1):
        parts = [part for part in tiles.head_parts(width) if part]
        assert width <= sum(parts) <= max(16, 1.5 * width + 15)
        assert all(part >= 16 and part & (part - 1) == 0 for part in parts)
        assert tiles.padded_head(sum(parts)) == sum(parts)


GOOD = layers(4, 6, 3)


@pytest.mark.parametrize("form", ["torch", "triton"])
@pytest.mark.parametrize(("vector", "parameters", "heads", "precision", "words"), [
    (torch.zeros(2, 5), GOOD, 3, None, r"vector: shape \[2, 5\]; must be \[B, 4\]"),
    (torch.zeros(2, 4).int(), GOOD, 3, None, "vector: dtype"),
    (torch.zeros(2, 4), GOOD, 4, None, "heads a divisor of h"),
    (torch.zeros(2, 4), GOOD, 3, "fp8", "precision='fp8'"),
    (torch.zeros(2, 2, 4), [x[None] for x in GOOD], 3, None, "2 groups; the weights have 1"),
])  # fmt: skip
def test_wrong_arguments_say_which(
    form: str, vector: Tensor, parameters: list[Tensor], heads: int, precision: str | None, words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MSTDISTILL_KERNELS", form)
    with pytest.raises(ValueError, match=words):
        mask_values(vector, MaskWeights(*parameters, heads), precision)
    with pytest.raises(ValueError, match="feature: shape"):
        masked_reconstruction(torch.zeros(2, 3, 5, 5), MaskWeights(*GOOD, 3), torch.zeros(2, 4))
