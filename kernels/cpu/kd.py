"""Distillation losses on a CPU: `routed_kd.py`'s equations, a few rows at a time, the gradient made on the way.

A block of rows stays in the cache from the first pass over it to the last; of the batch's size is the gradient alone.
Rows of few classes stand in columns, as in `kd_small.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..launch import truth
from .kd_small import in_columns

# Numbers of a block: half a megabyte of float32.
_BLOCK = 2**17


class Distil(torch.autograd.Function):
    """student [B, C] or [B, C, P], weights [B, K] -> loss [B], distillation loss [B], task loss [B].

    `settings`: temperature, mixture, ignore_index, and the type to compute in.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, weights: Tensor | None, teachers: Tensor, indices: Tensor | None,
        label: Tensor | None, rows: Tensor | None, kd_scale: Tensor | None, task_scale: Tensor | None,
        settings: tuple[float, bool, int, torch.dtype],
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        acc, batch = settings[3], len(student)
        given = _Given(student, teachers, indices, rows, _to(weights, acc), label, _to(kd_scale, acc),
                       _to(task_scale, acc), settings)  # fmt: skip
        needs, needs_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and weights is not None
        step = given.rows_of_a_block()
        if 0 < batch <= step:
            block = _Block(given, slice(0, batch), needs, needs_weights)
            kd, task, towards, towards_weights = block.kd, block.task, block.gradient, block.at_weights
        else:
            kd, task = student.new_empty(batch, dtype=acc), student.new_zeros(batch, dtype=acc)
            towards = torch.empty_like(student, dtype=acc) if needs else None  # half precision would underflow unscaled
            towards_weights = torch.empty_like(given.weights) if needs_weights else None  # type: ignore[arg-type]
            for start in range(0, batch, step):
                at = slice(start, min(start + step, batch))
                block = _Block(given.part(at), at, needs, needs_weights)
                kd[at] = block.kd
                if block.task is not None:
                    task[at] = block.task
                if towards is not None and block.gradient is not None:
                    towards[at] = block.gradient
                if towards_weights is not None and block.at_weights is not None:
                    towards_weights[at] = block.at_weights
        loss = kd if given.kd_scale is None else kd * given.kd_scale
        if label is None or task is None:
            task = torch.zeros_like(kd)
            loss = kd.clone() if loss is kd else loss
        else:
            loss = loss + task if given.task_scale is None else torch.addcmul(loss, task, given.task_scale)
        ctx.save_for_backward(towards, towards_weights)
        ctx.dtype = student.dtype
        ctx.mark_non_differentiable(kd, task)
        return loss, kd, task

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        towards, towards_weights = ctx.saved_tensors
        if towards is not None:
            towards = (towards * outer.view(-1, *(1,) * (towards.dim() - 1))).to(ctx.dtype)
        if towards_weights is not None:
            towards_weights = towards_weights * outer.to(towards_weights.dtype).unsqueeze(1)
        return towards, towards_weights, None, None, None, None, None, None, None


@dataclass(frozen=True)
class _Given:
    """A batch, or some rows of one; `teachers` stays whole."""

    student: Tensor
    teachers: Tensor
    indices: Tensor | None
    rows: Tensor | None
    weights: Tensor | None
    label: Tensor | None
    kd_scale: Tensor | None
    task_scale: Tensor | None
    settings: tuple[float, bool, int, torch.dtype]

    def rows_of_a_block(self) -> int:
        """As many as stay in the cache together, but one a thread: it is rows that torch's threads share."""
        width = self.student.shape[1:].numel() * (self.teachers.shape[1] if self.settings[1] else 1)
        return max(1, _BLOCK // max(1, width), torch.get_num_threads())

    def part(self, at: slice) -> _Given:
        """Some rows."""
        small = (self.weights, self.label, self.kd_scale, self.task_scale)
        weights, label, kd_scale, task_scale = (None if x is None else x[at] for x in small)
        indices, rows = (None if x is None else x[at] for x in (self.indices, self.rows))
        return _Given(self.student[at], self.teachers, indices, rows, weights, label, kd_scale, task_scale,
                      self.settings)  # fmt: skip


class _Block:
    """Some rows' losses, and the gradients at the student's logits and at the weights.

    Attributes:
        kd, task: [b]; task is None without labels.
        gradient, at_weights: like the student's logits and the weights, where they are needed.
    """

    def __init__(self, given: _Given, at: slice, needs: bool, needs_weights: bool) -> None:
        self.given, self.at = given, at
        self.temperature, self.mixture, self.ignored, self.acc = given.settings
        dense = given.student.dim() == 3
        self.pixels = given.student.shape[2] if dense else 1
        self.axis = 0 if not dense and not self.mixture and in_columns(*given.student.shape) else 1
        self.student = self._laid(given.student.to(self.acc))
        self.log_q, self.q = self._both(self._cool(self.student))
        self.gradient: Tensor | None = None
        self.at_weights: Tensor | None = None
        self.task: Tensor | None = None
        if self.mixture:
            self._to_mixture(needs, needs_weights)
        else:
            self._to_each(needs, needs_weights)
        if given.label is not None:
            self._classify(given.label, needs)
        if self.gradient is not None and self.axis == 0:
            self.gradient = self.gradient.t().contiguous()

    def _to_mixture(self, needs: bool, needs_weights: bool) -> None:
        given = self.given
        stack = (given.teachers[self.at] if given.rows is None else given.teachers[given.rows]).to(self.acc)
        mean = stack.mean(dim=1) if given.weights is None else torch.einsum("bm,bm...->b...", given.weights, stack)
        each, p, terms = self._divergence(mean.div_(self.temperature))
        self.kd = _mean(each) * self.temperature**2
        if needs_weights:
            at_mean = self._scaled(terms.addcmul_(p, each.unsqueeze(1), value=-1))
            self.at_weights = torch.einsum("b...,bm...->bm" if stack.dim() == 4 else "bc,bmc->bm", at_mean, stack)
        if needs:
            self.gradient = self._scaled(self.q - p)

    def _to_each(self, needs: bool, needs_weights: bool) -> None:
        given, square = self.given, self.temperature**2
        chosen = given.teachers.shape[1] if given.indices is None else given.indices.shape[1]
        losses: list[Tensor] = []
        mixed: Tensor | None = None
        for i in range(chosen):
            each, p, _ = self._divergence(self._teacher(i))
            losses.append(_mean(each))
            if needs:
                p = p if given.weights is None else p.mul_(self._wide(given.weights[:, i]))
                mixed = p if mixed is None else mixed.add_(p)
        if given.weights is None:
            self.kd = (losses[0] if chosen == 1 else torch.stack(losses).mean(dim=0)) * square
        else:
            every = torch.stack(losses, dim=1)
            self.kd = (every * given.weights).sum(dim=1).mul_(square)
            if needs_weights:
                scale = given.kd_scale
                self.at_weights = every.mul_(square) if scale is None else every * (square * scale).unsqueeze(1)
        if mixed is not None:
            if given.weights is None:
                self.gradient = self._scaled(mixed.div_(-chosen).add_(self.q))
            else:
                whole = self._wide(given.weights.sum(dim=1))
                self.gradient = self._scaled(mixed.neg_().addcmul_(self.q, whole))

    def _classify(self, label: Tensor, needs: bool) -> None:
        """The task loss; its gradient is added."""
        log_s, s = (self.log_q, self.q) if self.temperature == 1 else self._both(self.student)
        left = label == self.ignored
        known = label.masked_fill(left, 0).unsqueeze(self.axis)
        loss = log_s.gather(self.axis, known).squeeze(self.axis).neg_().masked_fill_(left, 0.0)
        self.task = loss.sum(dim=1) if loss.dim() == 2 else loss
        if not needs or self.gradient is None:
            return
        scale = self.given.task_scale
        slope = log_s.new_ones(()) if scale is None else scale.view(-1, *(1,) * (label.dim() - 1))
        slope = slope.expand(label.shape).masked_fill(left, 0.0).unsqueeze(self.axis)
        self.gradient.addcmul_(s, slope).scatter_add_(self.axis, known, slope.neg())

    def _both(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of the softmax, and the softmax: exponentials, which are what costs here, are taken once."""
        p = logits.softmax(dim=self.axis)
        most = logits.amax(dim=self.axis, keepdim=True).sub_(p.amax(dim=self.axis, keepdim=True).log_())
        return logits - most, p

    def _teacher(self, i: int) -> Tensor:
        """Logits [b, C, ...] of each row's i-th teacher over the temperature, laid as the student's."""
        teachers, indices, rows = self.given.teachers, self.given.indices, self.given.rows
        if indices is None and rows is None:
            return self._cool(self._laid(teachers[self.at, i].to(self.acc)))
        at = torch.arange(self.at.start, self.at.stop) if rows is None else rows
        which = i if indices is None else indices[:, i]
        if teachers.is_contiguous():  # whole rows are copied, not numbers
            found = teachers.flatten(0, 1).index_select(0, at * teachers.shape[1] + which)
        else:
            found = teachers[at, which]
        return self._laid(found.to(self.acc)).div_(self.temperature)

    def _divergence(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sum_c p (log p - log q) [b] or [b, P], p, and the terms of the sum; p = 0 counts as none."""
        log_p, p = self._both(logits)
        terms = log_p.sub_(self.log_q).mul_(p)
        rows = terms.sum(dim=self.axis)
        if not truth(rows.isfinite().all(), True):
            terms = terms.masked_fill_(p == 0, 0.0)
            rows = terms.sum(dim=self.axis)
        return rows, p, terms

    def _laid(self, x: Tensor) -> Tensor:
        return x.t().contiguous() if self.axis == 0 else x

    def _cool(self, x: Tensor) -> Tensor:
        return x / self.temperature if self.temperature != 1 else x

    def _scaled(self, x: Tensor) -> Tensor:
        """Times the temperature and the rows' scale, over the number of pixels; in place."""
        factor, scale = self.temperature / self.pixels, self.given.kd_scale
        return x.mul_(factor) if scale is None else x.mul_(self._wide(scale * factor))

    def _wide(self, x: Tensor) -> Tensor:
        return x if self.axis == 0 else x.view(-1, *(1,) * (self.student.dim() - 1))


def _mean(rows: Tensor) -> Tensor:
    """Over the pixels, where there are any."""
    return rows.mean(dim=1) if rows.dim() == 2 else rows


def _to(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)
