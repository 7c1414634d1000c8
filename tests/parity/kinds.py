"""What to compute for each kind of golden case; see the docstring of `test_parity.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from mstdistill.kernels import kd_rows, load_balance, mixed_kd_rows, route, routed_kd_loss
from torch import Tensor

from mstdistill.backbones.catalogue import backbones, build
from mstdistill.data.feeding.batch import Batch
from mstdistill.losses import balance, task
from mstdistill.metrics import confusion_of, metrics_of
from mstdistill.routing import DenseRouter, Router, RoutingRule
from mstdistill.teachers.mask import MaskNet1d, MaskNet2d
from mstdistill.teachers.tap import hooked

from .baselines import BASELINE_CHECKS
from .trajectory import check_trajectory

Golden = dict[str, Tensor]


def close(found: Tensor, wanted: Tensor, rtol: float, what: str) -> None:
    """The manifest's rule: |a - b| <= rtol * max(1, max|b|)."""
    assert tuple(found.shape) == tuple(wanted.shape), (
        f"{what}: shape {tuple(found.shape)}, wanted {tuple(wanted.shape)}"
    )
    bound = rtol * max(1.0, float(wanted.abs().max()) if wanted.numel() else 1.0)
    error = float((found.detach().to(torch.float64) - wanted.to(torch.float64)).abs().max()) if wanted.numel() else 0.0
    assert error <= bound, f"{what}: differs by {error:.3e}, allowed {bound:.3e}"


def leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_(True)


def group(golden: Golden, prefix: str) -> Golden:
    return {key[len(prefix) :]: value for key, value in golden.items() if key.startswith(prefix)}


def check_gradients(module: torch.nn.Module, golden: Golden, rtol: float) -> None:
    wanted = group(golden, "grad.")
    for name, parameter in module.named_parameters():
        if name not in wanted:
            continue
        assert parameter.grad is not None, name
        found, expected = parameter.grad, wanted[name]
        if name == "mha.in_proj_bias":  # the key bias has no effect: its gradient is rounding noise
            h = len(expected) // 3
            keep = torch.cat([torch.arange(h), torch.arange(2 * h, 3 * h)])
            found, expected = found[keep], expected[keep]
        close(found, expected, rtol, f"gradient of {name}")


def check_mask(golden: Golden, params: dict[str, Any], rtol: float, flat: bool) -> None:
    width = params["feat_dim"] if flat else params["channels"]
    module = (MaskNet1d if flat else MaskNet2d)(width, params["hidden_dim"], params["num_heads"]).double()
    module.load_state_dict(group(golden, "param." if flat else "before."))
    module.train(params.get("train", True))
    x = leaf(golden["x"])
    mask = module.mask(x)
    masked = mask * x if flat else mask[:, :, None, None] * x
    close(mask, golden["mask"], rtol, "mask")
    close(masked, golden["masked"], rtol, "masked")
    if flat:
        close(module(x), golden["masked"], rtol, "module output")
    (golden["w"] * masked).sum().backward()
    assert x.grad is not None
    close(x.grad, golden["grad.x"], rtol, "gradient of x")
    check_gradients(module, golden, rtol)
    for name, value in group(golden, "after.").items():
        close(module.state_dict()[name], value, rtol, f"{name} afterwards")


def check_router(golden: Golden, params: dict[str, Any], rtol: float, dense: bool) -> None:
    module = (DenseRouter if dense else Router)(params["num_classes"], params["num_teachers"]).double()
    module.load_state_dict(group(golden, "param."))
    z = leaf(golden["z"])
    logits = module(z)
    routing = route(logits, 1)
    close(logits, golden["logits"], rtol, "logits")
    close(routing.probs, golden["probs"], rtol, "probs")
    for k in (1, 2, 3):
        if f"topk{k}" in golden:
            assert torch.equal(route(logits, k).indices, golden[f"topk{k}"])
    (golden["w"] * routing.probs).sum().backward()
    assert z.grad is not None
    close(z.grad, golden["grad.z"], rtol, "gradient of z")
    check_gradients(module, golden, rtol)


def check_kd(golden: Golden, params: dict[str, Any], rtol: float) -> None:
    learner, reference = leaf(golden["learner"]), leaf(golden["reference"])
    loss = kd_rows(learner, reference, params["T"]).mean()
    loss.backward()
    close(loss, golden["loss"], rtol, "loss")
    assert learner.grad is not None
    assert reference.grad is not None
    close(learner.grad, golden["grad.learner"], rtol, "gradient of learner")
    close(reference.grad, golden["grad.reference"], rtol, "gradient of reference")


def check_balance(golden: Golden, params: dict[str, Any], rtol: float) -> None:
    logits = leaf(golden["logits"])
    routing = route(logits, 1)
    loss = load_balance(routing.log_probs, params["mode"])
    loss.backward()
    close(routing.probs, golden["probs"], rtol, "probs")
    close(loss, golden["loss"], rtol, "loss")
    assert logits.grad is not None
    close(logits.grad, golden["grad.logits"], rtol, "gradient of logits")


def check_routed(golden: Golden, params: dict[str, Any], rtol: float) -> None:
    probs, teachers, temperature = golden["probs"], golden["teachers"], params["T"]
    indices = route(probs.log(), params["k"]).indices
    assert torch.equal(indices, golden["indices"])
    student = leaf(golden["student"])
    loss = routed_kd_loss(student, teachers, indices, None, temperature).mean()
    loss.backward()
    close(loss, golden["loss"], rtol, "loss")
    assert student.grad is not None
    close(student.grad, golden["grad.student"], rtol, "gradient of student")
    student = leaf(golden["student"])
    loss = mixed_kd_rows(student, teachers, probs, temperature).mean()
    loss.backward()
    close(loss, golden["soft.loss"], rtol, "soft loss")
    assert student.grad is not None
    close(student.grad, golden["soft.grad.student"], rtol, "soft gradient of student")


def check_objective(golden: Golden, params: dict[str, Any], rtol: float) -> None:
    student, teachers, label = leaf(golden["student"]), golden["teachers"], golden["labels"]
    rows = len(label)
    batch = Batch({}, label, torch.arange(rows), torch.ones(rows), float(rows))
    router = Router(student.shape[1], teachers.shape[1]).double()
    router.load_state_dict(group(golden, "param."))
    rule = RoutingRule("topk-mean", params["k"])
    routing = rule.select(router(student), batch.index, 0)
    parts = {
        "ce": task(student, batch),
        "kd": batch.mean(rule.distillation(student, teachers, routing, params["T"]).loss),
        "balance": balance(routing, batch, params["mode"]),
    }
    loss = params["w_task"] * parts["ce"] + params["w_kd"] * parts["kd"] + params["w_lb"] * parts["balance"]
    loss.backward()
    for name, value in {**parts, "loss": loss}.items():
        close(value, golden[name], rtol, name)
    assert torch.equal(routing.indices, golden["indices"])
    assert student.grad is not None
    close(student.grad, golden["grad.student"], rtol, "gradient of student")
    check_gradients(router, golden, rtol)


def check_metrics(golden: Golden, params: dict[str, Any], rtol: float) -> None:
    ignore, classes = params["ignore_index"], params["num_classes"]
    matrix = confusion_of(golden["pred"], golden["target"], classes, ignore)
    keep = [c for c in range(classes) if c != ignore]
    assert torch.equal(matrix.long()[keep][:, keep], golden["confusion"])
    found = metrics_of(matrix, ignore)
    bound = rtol * 1.01  # rounded half up to four decimals, then stored in float32
    for name in ("accuracy", "weighted_f1", "average_accuracy", "kappa", "miou"):
        assert abs(getattr(found, name) - float(golden[name])) <= bound, name
    wanted = golden["precision"]
    ours = torch.tensor(found.precision, dtype=torch.float64)
    assert torch.equal(ours.isnan(), wanted.isnan())
    assert float((ours - wanted).nan_to_num().abs().max()) <= bound


def fill(module: torch.nn.Module, offset: float) -> None:
    """The manifest's rule for a backbone's parameters."""
    with torch.no_grad():
        for k, (name, p) in enumerate(module.named_parameters()):
            wave = torch.sin(0.7 * torch.arange(p.numel(), dtype=torch.float64) + k + offset)
            if p.dim() > 1:
                values = wave / (p[0].numel() ** 0.5)
            elif name.endswith("weight"):
                values = 1 + 0.1 * wave
            else:
                values = 0.1 * wave
            p.copy_(values.view_as(p))


# the golden inputs are channels first, as those networks get them; ours take video and feature maps as stored
STORED = {
    "VisualBranchNet": (0, 2, 1, 3, 4),
    "DSCNN-I": (0, 2, 1, 3, 4),
    "VisualBranchNet-VGGS": (0, 2, 3, 4, 1),
    "DSCNN-VGGS-I": (0, 2, 3, 4, 1),
}


def golden_input(name: str, number: int, shape: list[int]) -> Tensor:
    """The manifest's rule for a backbone's input, in the order that the registered network takes it."""
    wave = torch.sin(0.3 * torch.arange(math.prod(shape), dtype=torch.float64) + number).view(shape)
    return wave.permute(STORED[name]) if name in STORED and wave.dim() == 5 else wave


def check_backbone(golden: Golden, params: dict[str, Any], rtol: float) -> None:
    name = params["backbone"]
    module = build(name, params["logits_shape"][1]).double().eval()
    assert [[key, list(p.shape)] for key, p in module.named_parameters()] == params["parameters"]
    assert sorted([key, list(b.shape)] for key, b in module.named_buffers()) == sorted(params["buffers"])
    fill(module, params["fill_offset"])
    inputs = [golden_input(name, j, shape) for j, shape in enumerate(params["inputs"])]
    assert [tuple(x.shape[1:]) for x in inputs] == list(backbones()[name].inputs) or "FuseNet" in name
    features: dict[str, Tensor] = {}

    def note(tap: str) -> Callable[[Tensor], Tensor]:
        def keep(feature: Tensor) -> Tensor:
            features[tap] = feature
            return feature

        return keep

    taps = list(group(golden, "tap_shape."))
    with torch.no_grad(), hooked(module, {tap: note(tap) for tap in taps}, name):
        logits = module(*inputs)
    assert list(logits.shape) == params["logits_shape"]
    stride = params["logits_stride"]
    close(logits[..., :: stride[0], :: stride[1]] if stride else logits, golden["logits"], rtol, "logits")
    for tap in taps:
        assert list(features[tap].shape) == golden[f"tap_shape.{tap}"].tolist()
        close(features[tap].sum(), golden[f"tap_sum.{tap}"], rtol, f"sum of {tap}")
        close(features[tap].abs().sum(), golden[f"tap_abs_sum.{tap}"], rtol, f"absolute sum of {tap}")


CHECKS: dict[str, Callable[[Golden, dict[str, Any], float], None]] = {
    "masknet1d": lambda g, p, r: check_mask(g, p, r, True),
    "masknet2d": lambda g, p, r: check_mask(g, p, r, False),
    "router": lambda g, p, r: check_router(g, p, r, False),
    "dense_router": lambda g, p, r: check_router(g, p, r, True),
    "kd": check_kd,
    "load_balance": check_balance,
    "routed_kd": check_routed,
    "objective": check_objective,
    "trajectory": lambda g, p, r: check_trajectory(g, p, r, close),
    "metrics": check_metrics,
    "backbone": check_backbone,
}


def _baseline(kind: str) -> Callable[[Golden, dict[str, Any], float], None]:
    def check(golden: Golden, params: dict[str, Any], rtol: float) -> None:
        BASELINE_CHECKS[kind](golden, params, lambda found, wanted, what: close(found, wanted, rtol, what))

    return check


CHECKS |= {kind: _baseline(kind) for kind in BASELINE_CHECKS}
