"""What is measured: shapes, the fewest bytes and useful operations of each, and the forms that compute the same thing.

Bytes count each input read once and each result written once. A baseline starts from what a user has: raw logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bernoulli_kd import bernoulli_distillation, bernoulli_distillation_reference
from ..mask import MaskWeights, masked_reconstruction
from ..routed_kd import distillation_loss, distillation_loss_reference
from ..router import route, route_reference

Inputs = dict[str, Any]
# From inputs to a scalar to differentiate; `learns` of the case says with respect to what.
Form = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Case:
    """One shape of one kernel.

    Attributes:
        make: (device, dtype, seed) -> inputs.
        learns: names of the inputs that get gradients; "weights" stands for all mask weights.
        forms: name -> form; "ours" and "plain" are this project's, in float64 "plain" is the truth.
        bytes_forward, bytes_both: fewest bytes per element of `dtype` size e: a function of e.
        flops_forward, flops_both: useful floating point operations.
        on_cpu: whether a CPU finishes it in a moment.
    """

    kernel: str
    shape: str
    dtype: torch.dtype
    make: Callable[[torch.device, torch.dtype, int], Inputs]
    learns: tuple[str, ...]
    forms: dict[str, Form]
    bytes_forward: float
    bytes_both: float
    flops_forward: float
    flops_both: float
    on_cpu: bool = False


def _routing(rows: int, teachers: int, k: int, on_cpu: bool) -> Case:
    def make(device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
        g = torch.Generator(device).manual_seed(seed)
        return {"logits": torch.randn(rows, teachers, generator=g, device=device, dtype=dtype),
                "outer": torch.randn(rows, teachers, generator=g, device=device, dtype=dtype)}  # fmt: skip

    def ours(x: Inputs) -> Tensor:
        found = route(x["logits"], k, None, "KL")
        assert found.balance is not None
        found.counts.numel()  # they are made when asked for, and the textbook form makes them too
        return found.balance + (found.log_probs * x["outer"]).sum()

    def plain(x: Inputs) -> Tensor:
        found = route_reference(x["logits"], k, None, "KL")
        assert found.balance is not None
        return found.balance + (found.log_probs * x["outer"]).sum()

    def eager(x: Inputs) -> Tensor:
        probs = x["logits"].softmax(dim=1)
        chosen = probs.topk(k, dim=1).indices
        torch.zeros(teachers, device=probs.device).index_add_(
            0, chosen.reshape(-1), torch.ones(rows * k, device=probs.device)
        )
        mean = probs.mean(dim=0)
        balance = F.kl_div(mean.log(), torch.full_like(mean, 1 / teachers), reduction="batchmean")
        return balance + (probs.log() * x["outer"]).sum()

    cell = rows * teachers
    return Case(
        "route", f"B={rows} M={teachers} k={k}", torch.float32, make, ("logits",),
        {"ours": ours, "plain": plain, "eager": eager},
        cell * 8 + rows * k * 8, cell * 20 + rows * k * 8, 6.0 * cell, 12.0 * cell, on_cpu,
    )  # fmt: skip


def _kd(rows: int, teachers: int, classes: int, k: int, dtype: torch.dtype, on_cpu: bool, dense: tuple[int, ...] = (),
        soft: bool = False) -> Case:  # fmt: skip
    def make(device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
        g = torch.Generator(device).manual_seed(seed)

        def logits(*shape: int) -> Tensor:
            return (3 * torch.randn(shape, generator=g, device=device)).to(dtype)

        indices = torch.rand(rows, teachers, generator=g, device=device).topk(k, dim=1).indices
        return {
            "student": logits(rows, classes, *dense), "teachers": logits(rows, teachers, classes, *dense),
            "indices": indices, "weights": torch.rand(rows, teachers, generator=g, device=device).softmax(dim=1),
            "label": torch.randint(classes, (rows, *dense), generator=g, device=device),
            "task_scale": torch.full((rows,), 1.0 / max(1, math.prod(dense)), device=device),
        }  # fmt: skip

    def arguments(x: Inputs) -> dict[str, Any]:
        chosen = {"weights": x["weights"]} if soft else {"indices": x["indices"]}
        return {"student": x["student"], "teachers": x["teachers"], **chosen, "label": x["label"],
                "task_scale": x["task_scale"]}  # fmt: skip

    def ours(x: Inputs) -> Tensor:
        return distillation_loss(**arguments(x)).loss.sum()

    def plain(x: Inputs) -> Tensor:
        return distillation_loss_reference(**arguments(x)).loss.sum()

    def textbook(x: Inputs, kl: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        student = x["student"].float()
        log_q = (student / 4.0).log_softmax(dim=1)
        if soft:
            parts = [(x["weights"][:, m], x["teachers"][:, m]) for m in range(teachers)]
        else:
            at = torch.arange(rows, device=student.device)
            each = student.new_full((rows,), 1.0 / k)
            parts = [(each, x["teachers"][at, x["indices"][:, i]]) for i in range(k)]
        loss = F.cross_entropy(student, x["label"], reduction="sum") / max(1, math.prod(dense))
        for weight, teacher in parts:
            per_row = kl(log_q, (teacher.float() / 4.0).log_softmax(dim=1))
            loss = loss + 16.0 * (weight * per_row.flatten(1).mean(dim=1)).sum()
        return loss

    def eager(x: Inputs) -> Tensor:
        return textbook(x, lambda q, p: F.kl_div(q, p, reduction="none", log_target=True).sum(dim=1, keepdim=True))

    forms: dict[str, Form] = {"ours": ours, "plain": plain, "eager": eager}
    liger = _liger()
    if liger is not None and not dense and not soft:

        def with_liger(x: Inputs) -> Tensor:
            return textbook(x, lambda q, p: liger(q, p).unsqueeze(1))

        forms["liger"] = with_liger
    cell, read = rows * classes * max(1, math.prod(dense)), teachers if soft else k
    e = torch.finfo(dtype).bits // 8
    pixels = f" @{'x'.join(str(n) for n in dense)}" if dense else ""
    name = f"B={rows} M={teachers} C={classes} k={'soft' if soft else k}{pixels}"
    return Case(
        "kd-dense" if dense else "kd", name, dtype, make, ("student",), forms,
        (1 + read) * cell * e, (2 + read) * cell * e, (5.0 + 6 * read) * cell, (8.0 + 8 * read) * cell, on_cpu,
    )  # fmt: skip


def _bernoulli(rows: int, teachers: int, classes: int, k: int, dtype: torch.dtype, on_cpu: bool) -> Case:
    def make(device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
        g = torch.Generator(device).manual_seed(seed)
        logits = [(3 * torch.randn(shape, generator=g, device=device)).to(dtype)
                  for shape in ((rows, classes), (rows, teachers, classes))]  # fmt: skip
        return {
            "student": logits[0], "teachers": logits[1],
            "indices": torch.rand(rows, teachers, generator=g, device=device).topk(k, dim=1).indices,
            "label": torch.randint(-1, 2, (rows, classes), generator=g, device=device),
            "task_scale": torch.full((rows,), 1.0 / classes, device=device),
        }  # fmt: skip

    def ours(x: Inputs) -> Tensor:
        return bernoulli_distillation(**x).loss.sum()

    def plain(x: Inputs) -> Tensor:
        return bernoulli_distillation_reference(**x).loss.sum()

    def eager(x: Inputs) -> Tensor:
        student, label = x["student"].float(), x["label"]
        at, loss = torch.arange(rows, device=student.device), student.new_zeros(())
        for i in range(k):
            teacher = x["teachers"][at, x["indices"][:, i]].float() / 4.0
            p = torch.sigmoid(teacher)
            yes = p * (F.logsigmoid(teacher) - F.logsigmoid(student / 4.0))
            no = (1 - p) * (F.logsigmoid(-teacher) - F.logsigmoid(-student / 4.0))
            loss = loss + 16.0 * (yes + no).mean(dim=1).sum() / k
        entries = F.binary_cross_entropy_with_logits(student, label.clamp(min=0).float(), reduction="none")
        return loss + ((entries * (label >= 0)).sum(dim=1) * x["task_scale"]).sum()

    cell, e = rows * classes, torch.finfo(dtype).bits // 8
    return Case(
        "kd-bernoulli", f"B={rows} M={teachers} C={classes} k={k}", dtype, make, ("student",),
        {"ours": ours, "plain": plain, "eager": eager},
        (1 + k) * cell * e + 8 * cell, (2 + k) * cell * e + 8 * cell, (12.0 + 14 * k) * cell, (20.0 + 16 * k) * cell,
        on_cpu,
    )  # fmt: skip


def _liger() -> Callable[[Tensor, Tensor], Tensor] | None:
    """Liger's KL per row, from log-probabilities, where the package is installed."""
    try:
        from liger_kernel.transformers.kl_div import LigerKLDIVLoss
    except ImportError:
        return None
    found = LigerKLDIVLoss(reduction="none", log_target=True)
    return lambda log_q, log_p: found(log_q, log_p).sum(dim=-1)


def _mask(batch: int, width: int, head: int, dtype: torch.dtype, on_cpu: bool) -> Case:
    heads, hidden = 3, 3 * head

    def make(device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
        torch.manual_seed(seed)
        layers = [nn.Linear(width, width * hidden), nn.MultiheadAttention(hidden, heads, batch_first=True),
                  nn.Linear(hidden, 1)]  # fmt: skip
        for layer in layers:
            layer.to(device=device, dtype=dtype)
        feature = torch.randn(batch, width, device=device, dtype=dtype)
        return {"layers": layers, "feature": feature, "outer": torch.randn_like(feature)}

    def ours(x: Inputs) -> Tensor:
        return (masked_reconstruction(x["feature"], MaskWeights.of(*x["layers"])) * x["outer"]).sum()

    def attend(need_weights: bool) -> Form:
        def form(x: Inputs) -> Tensor:
            embed, attention, fc = x["layers"]
            tokens = embed(x["feature"]).view(batch, width, hidden)
            found, _ = attention(tokens, tokens, tokens, need_weights=need_weights)
            return (x["feature"] * torch.sigmoid(fc(found).squeeze(2)) * x["outer"]).sum()

        return form

    def fused(call: Callable[[Tensor, Tensor, Tensor], Tensor], scalar: bool) -> Form:
        def form(x: Inputs) -> Tensor:
            embed, attention, fc = x["layers"]
            tokens = embed(x["feature"]).view(batch, width, hidden)
            weight, bias = attention.in_proj_weight, attention.in_proj_bias
            q, k, v = (part.view(batch, width, heads, head).transpose(1, 2)
                       for part in F.linear(tokens, weight, bias).chunk(3, dim=2))  # fmt: skip
            if scalar:  # the collapsed values, padded to the 16 columns that kernels want
                g, constant = MaskWeights.of(embed, attention, fc).grouped().values()
                t = F.pad((tokens @ g[0].t()).transpose(1, 2).unsqueeze(3), (0, 15))
                logit = call(q, k, t)[..., 0].sum(dim=1) + constant
            else:
                out = call(q, k, v).transpose(1, 2).reshape(batch, width, hidden)
                logit = fc(attention.out_proj(out)).squeeze(2)
            return (x["feature"] * torch.sigmoid(logit) * x["outer"]).sum()

        return form

    def flex(q: Tensor, k: Tensor, t: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        found: Tensor = torch.compile(flex_attention)(q, k, t)
        return found

    forms = {"ours": ours, "plain": ours, "eager": attend(True), "mha, no weights": attend(False),
             "sdpa": fused(F.scaled_dot_product_attention, False),
             "sdpa, scalar values": fused(F.scaled_dot_product_attention, True), "flex": fused(flex, True)}  # fmt: skip
    e = torch.finfo(dtype).bits // 8
    parameters = width * width * hidden + width * hidden
    packed = batch * width * (2 * hidden + heads)
    forward = 4.0 * width**2 * hidden * batch + 4.0 * width * hidden**2 * batch
    return Case(
        "mask", f"B={batch} d={width} dh={head}", dtype, make, ("feature", "weights"), forms,
        (parameters + packed) * e, (2 * parameters + 4 * packed) * e, forward,
        (14.0 * width**2 * hidden + 12.0 * width * hidden**2) * batch, on_cpu,
    )  # fmt: skip


def cases() -> Iterator[Case]:
    """The plan: small shapes that only launches bind, the paper's, and large ones."""
    half = torch.bfloat16
    for routing in ((512, 4, 1, True), (4096, 64, 8, True), (65536, 128, 2, False)):
        yield _routing(*routing)
    for rows in ((512, 4, 10, 1, torch.float32, True), (512, 4, 141, 1, torch.float32, True),
                 (4096, 4, 1000, 1, half, False), (4096, 8, 1000, 4, half, True), (1024, 4, 32000, 2, half, False),
                 (1024, 2, 151936, 1, half, False), (32, 4, 151936, 1, half, True)):  # fmt: skip
        yield _kd(*rows)
    yield _kd(4096, 64, 1000, 1, half, False, soft=True)
    for dense in ((1, torch.float32, False), (2, half, True)):
        yield _kd(6, 4, 41, dense[0], dense[1], dense[2], dense=(480, 640) if not dense[2] else (120, 160))
    yield _kd(6, 4, 41, 1, half, False, dense=(480, 640), soft=True)
    for several in ((512, 4, 20, 1, torch.float32, True), (4096, 4, 527, 2, half, True),
                    (4096, 4, 10000, 1, half, False)):  # fmt: skip
        yield _bernoulli(*several)
    for mask in ((512, 596, 99, False), (512, 298, 49, False), (64, 596, 99, True), (32, 320, 53, True),
                 (512, 1024, 170, False), (6, 512, 85, True), (512, 84, 14, True)):  # fmt: skip
        yield _mask(mask[0], mask[1], mask[2], torch.float32, mask[3])


def trained(inputs: Inputs, learns: tuple[str, ...]) -> list[Tensor]:
    """The tensors that get gradients, switched on."""
    found: list[Tensor] = []
    for name in learns:
        if name == "weights":
            found += [p for layer in inputs["layers"] for p in layer.parameters()]
        else:
            found.append(inputs[name])
    return [x.requires_grad_(True) for x in found]


def widened(inputs: Inputs) -> Inputs:
    """The same numbers in float64."""
    import copy

    def wide(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.detach().double() if x.is_floating_point() else x
        return [copy.deepcopy(layer).double() for layer in x]

    return {name: wide(x) for name, x in inputs.items()}
