"""Distillation losses on a CPU: `routed_kd.py`'s equations, a few rows at a time, the gradient made on the way.

A block of rows stays in the cache from the first pass over it to the last; of the batch's size is the gradient alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
        acc = settings[3]
        batch = len(student)
        kd, task = student.new_empty(batch, dtype=acc), student.new_zeros(batch, dtype=acc)
        needs, needs_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        towards = torch.empty_like(student, dtype=acc) if needs else None  # half precision would underflow unscaled
        towards_weights = torch.empty_like(weights) if needs_weights and weights is not None else None
        width = student[0].numel() * (teachers.shape[1] if settings[1] else 1) if batch else 1
        step = max(1, _BLOCK // max(1, width))
        for start in range(0, batch, step):
            at = slice(start, min(start + step, batch))
            block = _Block(student[at], _part(weights, at), settings, _part(kd_scale, at))
            block.compare(teachers, indices if indices is None else indices[at], rows if rows is None else rows[at], at,
                          needs, towards_weights is not None)  # fmt: skip
            kd[at] = block.kd
            if label is not None:
                task[at] = block.classify(label[at], _part(task_scale, at), needs)
            if towards is not None:
                towards[at] = block.gradient
            if towards_weights is not None:
                towards_weights[at] = block.at_weights
        loss = kd if kd_scale is None else kd * kd_scale.to(acc)
        if label is not None:
            loss = loss + (task if task_scale is None else task * task_scale.to(acc))
        elif loss is kd:
            loss = kd.clone()
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


class _Block:
    """Some rows of a batch: their losses, and the gradient at the student's logits."""

    def __init__(self, student: Tensor, weights: Tensor | None, settings: tuple[float, bool, int, torch.dtype],
                 kd_scale: Tensor | None) -> None:  # fmt: skip
        self.temperature, self.mixture, self.ignored, self.acc = settings
        self.student = student.to(self.acc)
        self.weights = None if weights is None else weights.to(self.acc)
        self.scale = None if kd_scale is None else kd_scale.to(self.acc)
        self.pixels = student.shape[2] if student.dim() == 3 else 1
        self.log_q = (self.student / self.temperature).log_softmax(dim=1)
        self.gradient: Tensor
        self.at_weights: Tensor

    def compare(self, teachers: Tensor, indices: Tensor | None, rows: Tensor | None, at: slice, needs: bool,
                needs_weights: bool) -> None:  # fmt: skip
        """The distillation loss and its gradients."""
        square = self.temperature**2
        if self.mixture:
            stack = (teachers[at] if rows is None else teachers[rows]).to(self.acc)
            mean = stack.mean(dim=1) if self.weights is None else torch.einsum("bm,bm...->b...", self.weights, stack)
            each, p, terms = self._divergence(mean.div_(self.temperature))
            self.kd = _mean(each) * square
            if needs_weights:
                at_mean = self._scaled(terms.addcmul_(p, each.unsqueeze(1), value=-1))
                self.at_weights = torch.einsum("b...,bm...->bm" if stack.dim() == 4 else "bc,bmc->bm", at_mean, stack)
            if needs:
                self.gradient = self._scaled(self.log_q.exp().sub_(p))
            return
        chosen = teachers.shape[1] if indices is None else indices.shape[1]
        losses, mixed = [], None
        for i in range(chosen):
            each, p, _ = self._divergence(self._teacher(teachers, i, indices, rows, at))
            losses.append(_mean(each))
            if needs:
                p = p if self.weights is None else p.mul_(self._wide(self.weights[:, i]))
                mixed = p if mixed is None else mixed.add_(p)
        every = torch.stack(losses, dim=1)
        if self.weights is None:
            self.kd = every.mean(dim=1).mul_(square)
        else:
            self.kd = (every * self.weights).sum(dim=1).mul_(square)
        if needs_weights:
            self.at_weights = every.mul_(square) if self.scale is None else every * (square * self.scale).unsqueeze(1)
        if mixed is not None:
            q = self.log_q.exp()
            if self.weights is None:
                q = q.sub_(mixed, alpha=1.0 / chosen)
            else:
                q = q.mul_(self._wide(self.weights.sum(dim=1))).sub_(mixed)
            self.gradient = self._scaled(q)

    def classify(self, label: Tensor, scale: Tensor | None, needs: bool) -> Tensor:
        """The task loss [b]; its gradient is added."""
        log_s = self.student.log_softmax(dim=1) if self.temperature != 1 else self.log_q
        left = label == self.ignored
        known = label.masked_fill(left, 0).unsqueeze(1)
        loss = log_s.gather(1, known).squeeze(1).neg_().masked_fill_(left, 0.0)
        if needs:
            slope = log_s.exp()
            slope.scatter_add_(1, known, slope.new_full((), -1.0).expand(known.shape))
            slope = slope.masked_fill_(left.unsqueeze(1), 0.0)
            if scale is None:
                self.gradient.add_(slope)
            else:
                self.gradient.addcmul_(slope, self._wide(scale.to(self.acc)))
        return loss.sum(dim=1) if loss.dim() == 2 else loss

    def _teacher(self, teachers: Tensor, i: int, indices: Tensor | None, rows: Tensor | None, at: slice) -> Tensor:
        """Logits [b, C, ...] of each row's i-th teacher over the temperature; a copy."""
        if indices is None and rows is None:
            return teachers[at, i].to(self.acc) / self.temperature
        position = torch.arange(at.start, at.stop) if rows is None else rows
        logits = teachers[position, i if indices is None else indices[:, i]]
        return logits.to(self.acc).div_(self.temperature)

    def _divergence(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sum_c p (log p - log q) [b] or [b, P], p, and the terms of the sum; p = 0 counts as none."""
        log_p = logits.log_softmax(dim=1)
        p = log_p.exp()
        terms = log_p.sub_(self.log_q).mul_(p)
        rows = terms.sum(dim=1)
        if not bool(rows.isfinite().all()):
            terms = terms.masked_fill_(p == 0, 0.0)
            rows = terms.sum(dim=1)
        return rows, p, terms

    def _scaled(self, x: Tensor) -> Tensor:
        """Times the temperature and the rows' scale, over the number of pixels; in place."""
        factor = self.temperature / self.pixels
        return x.mul_(factor) if self.scale is None else x.mul_(self._wide(self.scale * factor))

    def _wide(self, x: Tensor) -> Tensor:
        return x.view(-1, *(1,) * (self.student.dim() - 1))


def _mean(rows: Tensor) -> Tensor:
    """Over the pixels, where there are any."""
    return rows.mean(dim=1) if rows.dim() == 2 else rows


def _part(x: Tensor | None, at: slice) -> Tensor | None:
    return None if x is None else x[at]
