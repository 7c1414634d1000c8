"""Bernoulli distillation on a CPU: `bernoulli_kd.py`'s equations, a few rows at a time, the gradient made on the way.

A block of rows stays in the cache from the first pass over it to the last. Infinite logits and what is no label take a
second, slower way: almost no batch has any, and here a look at the result costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..bernoulli import counts, divergence, entries
from ..launch import truth

# Numbers of a block: half a megabyte of float32, of which a dozen are under way.
_BLOCK = 2**17


class Distil(torch.autograd.Function):
    """student [B, C], weights [B, K] -> loss [B], distillation loss [B], task loss [B].

    `settings`: temperature, mixture, and the type to compute in.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, weights: Tensor | None, teachers: Tensor, indices: Tensor | None,
        label: Tensor | None, rows: Tensor | None, kd_scale: Tensor | None, task_scale: Tensor | None,
        class_weights: Tensor | None, settings: tuple[float, bool, torch.dtype],
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        acc, (batch, classes) = settings[2], student.shape
        ctx.dtypes = (student.dtype, weights.dtype if weights is not None else None)
        needs, needs_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and weights is not None
        kd, task = student.new_empty(batch, dtype=acc), student.new_zeros(batch, dtype=acc)
        towards = torch.empty_like(student, dtype=acc) if needs else None  # half precision would underflow unscaled
        at_weights = torch.empty_like(weights, dtype=acc) if needs_weights and weights is not None else None
        step = max(1, _BLOCK // max(1, classes), torch.get_num_threads())
        for start in range(0, batch, step):
            at = slice(start, min(start + step, batch))
            share, known, kd_share, task_share = (
                None if x is None else x[at] for x in (weights, label, kd_scale, task_scale)
            )
            block = _Block(student[at].to(acc), _teachers(teachers, indices, rows, at), share, known, kd_share,
                           task_share, class_weights, settings[0], settings[1], needs, needs_weights)  # fmt: skip
            if not block.usual:
                block = block.slowly()
            kd[at] = block.kd
            if block.task is not None:
                task[at] = block.task
            if towards is not None and block.gradient is not None:
                towards[at] = block.gradient
            if at_weights is not None and block.at_weights is not None:
                at_weights[at] = block.at_weights
        loss = kd.clone() if kd_scale is None else kd * kd_scale.to(acc)
        if label is not None:
            loss = loss + task if task_scale is None else torch.addcmul(loss, task, task_scale.to(acc))
        ctx.save_for_backward(towards, at_weights)
        ctx.mark_non_differentiable(kd, task)
        return loss, kd, task

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        found = [None if x is None else (x * outer.to(x.dtype).unsqueeze(1)).to(dtype)
                 for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]  # fmt: skip
        return (*found, *[None] * 8)


def _teachers(teachers: Tensor, indices: Tensor | None, rows: Tensor | None, at: slice) -> list[Tensor]:
    """The block's teachers, logits [b, C] each."""
    where: Any = at if rows is None else rows[at]
    if indices is None:
        return [teachers[where, m] for m in range(teachers.shape[1])]
    which = indices[at]
    where = torch.arange(at.start, at.stop) if rows is None else where
    return [teachers[where, which[:, i]] for i in range(which.shape[1])]


@dataclass
class _Block:
    """Some rows' losses, and the gradients at the student's logits and at the weights.

    Attributes:
        kd, task: [b]; task is None without labels.
        gradient, at_weights: like the student's logits and the weights, where they are needed.
        usual: whether all is finite, so that the quick way held.
    """

    student: Tensor
    teachers: list[Tensor]
    weights: Tensor | None
    label: Tensor | None
    kd_scale: Tensor | None
    task_scale: Tensor | None
    class_weights: Tensor | None
    temperature: float
    mixture: bool
    needs: bool
    needs_weights: bool
    slow: bool = False

    def __post_init__(self) -> None:
        acc = self.student.dtype
        self.weights, self.kd_scale, self.task_scale = (
            None if x is None else x.to(acc) for x in (self.weights, self.kd_scale, self.task_scale)
        )
        self.gradient: Tensor | None = None
        self.at_weights: Tensor | None = None
        self.task: Tensor | None = None
        self.cool = self.student / self.temperature
        self.rest = None if self.slow else _rest(self.cool.abs().neg_().sigmoid_())
        if self.mixture:
            self._to_mixture()
        else:
            self._to_each()
        if self.label is not None:
            self._classify(self.label)
        total = self.kd if self.task is None else self.kd + self.task
        self.usual = self.slow or truth(total.isfinite().all(), True)

    def slowly(self) -> _Block:
        """The same rows, defined for infinite logits."""
        return _Block(self.student, self.teachers, self.weights, self.label, self.kd_scale, self.task_scale,
                      self.class_weights, self.temperature, self.mixture, self.needs, self.needs_weights,
                      slow=True)  # fmt: skip

    def _divergence(self, u: Tensor) -> Tensor:
        """[b] mean over the classes of a teacher's divergence, by its cooled logits [b, C]."""
        if self.rest is None:
            return divergence(u, self.cool).mean(dim=1)
        # by arithmetic alone, which is several times as fast here as choosing; b has the teacher's sign, not the other
        size, b = u.abs(), with_sign_of(u, self.cool)
        s = size.neg().sigmoid_()
        linear = size.sub_(b).mul_(s)
        return _rest(s).sub_(self.rest).sub_(b.clamp_(max=0)).sub_(linear).mean(dim=1)

    def _to_each(self) -> None:
        every, taught = [], None
        for i, z in enumerate(self.teachers):
            u = z.to(self.student.dtype, copy=True).div_(self.temperature)
            every.append(self._divergence(u).mul_(self.temperature**2))
            if self.needs:
                p = u.sigmoid_() if self.weights is None else u.sigmoid_().mul_(self.weights[:, i : i + 1])
                taught = p if taught is None else taught.add_(p)
        losses = every[0].unsqueeze(1) if len(every) == 1 else torch.stack(every, dim=1)
        self.kd = losses.mean(dim=1) if self.weights is None else (losses * self.weights).sum(dim=1)
        if self.needs_weights:
            self.at_weights = losses if self.kd_scale is None else losses * self.kd_scale.unsqueeze(1)
        if taught is not None:
            q = self.cool.sigmoid()
            if self.weights is None:
                taught = taught.div_(len(every)) if len(every) > 1 else taught
            else:
                q.mul_(self.weights.sum(dim=1, keepdim=True))
            self.gradient = self._scaled(q.sub_(taught))

    def _to_mixture(self) -> None:
        stack = torch.stack(self.teachers, dim=1).to(self.student.dtype)
        mean = stack.mean(dim=1) if self.weights is None else torch.einsum("bm,bmc->bc", self.weights, stack)
        mean.div_(self.temperature)
        self.kd = self._divergence(mean).mul_(self.temperature**2)
        p = mean.sigmoid()
        if self.needs_weights:
            steep = p * torch.sigmoid(-mean)
            at_mean = self._scaled(torch.where(steep == 0, 0.0, steep * (mean - self.cool)))
            self.at_weights = torch.einsum("bc,bmc->bm", at_mean, stack)
        if self.needs:
            self.gradient = self._scaled(self.cool.sigmoid().sub_(p))

    def _classify(self, label: Tensor) -> None:
        """The task loss; its gradient is added."""
        if self.slow or self.class_weights is not None:
            self.task = entries(self.student, label, self.class_weights).sum(dim=1)
            if self.gradient is None:
                return
            known, no, yes = counts(label, self.student.dtype, self.class_weights)
            slope = torch.where(known, no * self.student.sigmoid() - yes * torch.sigmoid(-self.student), 0.0)
        else:
            y = label.to(self.student.dtype)
            known = y.floor().add_(1).clamp_(0, 1)
            rest = _rest(self.student.abs().neg_().sigmoid_())
            each = self.student.clamp(min=0).sub_(rest).addcmul_(self.student, y, value=-1)
            self.task = each.mul_(known).sum(dim=1)
            if y.numel() and not truth(y.amax() <= 1, True):
                self.task.fill_(float("nan"))  # no label, as the slow way says
            if self.gradient is None:
                return
            slope = self.student.sigmoid().sub_(y).mul_(known)
        self.gradient.add_(slope if self.task_scale is None else slope.mul_(self.task_scale.unsqueeze(1)))

    def _scaled(self, x: Tensor) -> Tensor:
        """Times the temperature over the classes and the rows' scale; in place."""
        factor = self.temperature / max(1, self.student.shape[1])
        return x.mul_(factor) if self.kd_scale is None else x.mul_((self.kd_scale * factor).unsqueeze(1))


def _rest(s: Tensor) -> Tensor:
    """log(1 - s) of numbers from 0 to 1/2, which are overwritten: -log(1 + e^-|x|) where s = sigma(-|x|).

    log1p, which takes seven times as long, gives no more: what is lost in 1 - s is known exactly and put back.
    """
    w = 1 - s
    lost = (1 - w).sub_(s)
    return torch.log(w, out=s).add_(lost.div_(w))


def with_sign_of(sign: Tensor, x: Tensor) -> Tensor:
    """x where `sign` is positive, -x elsewhere; by its bits, a quarter of what copysign takes."""
    whole = torch.int64 if x.dtype == torch.float64 else torch.int32
    lowest = torch.iinfo(whole).min
    return sign.view(whole).bitwise_and(lowest).bitwise_xor_(x.view(whole)).view(x.dtype)
