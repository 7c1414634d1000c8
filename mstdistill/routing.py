"""Routers, and the rules by which their decision becomes a distillation loss per instance."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .certainty import CERTAINTIES, as_pairs, log_weights
from .errors import ConfigError
from .kernels import Distilled, Routing, bernoulli_distillation, distillation_loss, gate, route
from .kernels.constants import LOWEST
from .kernels.router import top_available, top_k

RULES = ("topk-mean", "topk-weighted", "soft", "random", "fixed", *CERTAINTIES)


class Router(nn.Module):
    """From the student's class logits [B, C] to router logits [B, M]; two Linears, nothing between (paper, GateNet)."""

    def __init__(self, num_classes: int, num_teachers: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(num_classes, 2 * num_classes)
        self.fc2 = nn.Linear(2 * num_classes, num_teachers)

    def forward(self, logits: Tensor) -> Tensor:
        return gate(logits, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)


class DenseRouter(nn.Module):
    """From the student's dense logits [B, C, H, W] to router logits [B, M] (paper, GateNet of the dense task)."""

    def __init__(self, num_classes: int, num_teachers: int) -> None:
        super().__init__()
        wide = 2 * num_classes
        self.conv_point = nn.Conv2d(num_classes, wide, 1)
        self.conv_depthwise = nn.Conv2d(wide, wide, 3, stride=2, padding=1, groups=wide)
        self.fc = nn.Linear(wide, num_teachers)

    def forward(self, logits: Tensor) -> Tensor:
        maps = F.relu(self.conv_depthwise(F.relu(self.conv_point(logits))))
        scores: Tensor = self.fc(maps.mean(dim=(2, 3)))
        return scores


def hash_uniform(index: Tensor, num_teachers: int, seed: int) -> Tensor:
    """[B, M] pseudo-random numbers that depend on the instance and the seed alone, not on rank, batch or history."""
    cell = index.to(torch.int64).unsqueeze(1) * num_teachers + torch.arange(num_teachers, device=index.device)
    x = cell * 6364136223846793005 + (seed * 1442695040888963407 + 1) % 2**62
    for shift, factor in ((30, 4658895280553007687), (27, 7723592293110705685)):
        x = (x ^ ((x >> shift) & (2 ** (64 - shift) - 1))) * factor
    x = x ^ ((x >> 31) & (2**33 - 1))
    return (x & (2**53 - 1)).to(torch.float64) / 2**53


@dataclass(frozen=True)
class RoutingRule:
    """How the chosen teachers' knowledge becomes one loss per instance.

    Attributes:
        name: `topk-mean`, the released rule: the plain mean over the k most probable; `topk-weighted`: their mean
            weighted by their renormalised probabilities; `soft`: one mixture of all M teachers' logits, weighted by
            the probabilities; `random`: k teachers drawn per instance and epoch; `fixed`: always teacher `fixed`;
            `entropy`, `margin`, `agreement`, `product`: as `soft`, weighted by what the teachers say; see `certainty`.
        k: teachers per instance.
        signal: what trains the router beside the load balance: "none", "distill" (the distillation loss through
            the weights: `topk-weighted` and `soft`), "task" (how likely the mixture of teachers finds the true class:
            any rule), or "both".
        fixed: position of the teacher for `fixed`.
        seed: of `random`.
        sharpness: of the weights by what the teachers say.
    """

    name: str = "topk-mean"
    k: int = 1
    signal: str = "none"
    fixed: int = 0
    seed: int = 0
    sharpness: float = 0.0

    def check(self, num_teachers: int) -> None:
        """Raises ConfigError where the rule can't work with this many specialised teachers."""
        if self.name not in RULES:
            raise ConfigError(f"routing.rule {self.name!r} is unknown; known: {', '.join(RULES)}")
        if not 1 <= self.k <= num_teachers:
            raise ConfigError(
                f"routing.k={self.k}: must be between 1 and the {num_teachers} specialised teachers of this recipe"
            )
        if self.name == "fixed" and not 0 <= self.fixed < num_teachers:
            raise ConfigError(f"routing.fixed={self.fixed}: must be between 0 and {num_teachers - 1}")
        if self.signal in ("distill", "both") and self.name not in ("topk-weighted", "soft"):
            raise ConfigError(
                f"routing.signal={self.signal!r}: rule {self.name!r} gives the router no weight in the distillation "
                "loss; use rule topk-weighted or soft, or signal task"
            )

    @property
    def needs_chosen_alone(self) -> bool:
        """Whether an instance's loss asks for its chosen teachers alone."""
        return not self.mixes and self.signal not in ("task", "both")

    @property
    def judges(self) -> bool:
        """Whether teachers are weighed by what they say of an instance."""
        return self.name in CERTAINTIES

    @property
    def mixes(self) -> bool:
        """Whether an instance has one mixture of all teachers."""
        return self.name == "soft" or self.judges

    def judged(self, routing: Routing, teachers: Tensor, temperature: Tensor, several: bool = False) -> Routing:
        """The routing with weights by what the teachers [B, M, C, ...] say; their temperatures [M] are in the weights,
        which need not add up to 1."""
        teachers = as_pairs(teachers) if several else teachers
        found = log_weights(teachers.detach(), temperature, self.name, self.sharpness, routing.seen)
        return replace(routing, log_probs=found.to(routing.log_probs.dtype) - temperature.to(found.dtype).log())

    def select(
        self, router_logits: Tensor, index: Tensor, epoch: int, weight: Tensor | None = None, balance: str = "",
        seen: Tensor | None = None,
    ) -> Routing:  # fmt: skip
        """Routing of a batch: router_logits [B, M], index [B] positions in the data set, weight [B] 0 for padding, seen
        [B, M] which teachers can see an instance."""
        routing = route(router_logits, self.k, weight, balance, seen)
        if self.name == "random":
            draws = hash_uniform(index, router_logits.shape[1], self.seed * 100_003 + epoch)
            chosen = top_k(draws, self.k) if seen is None else top_available(draws, seen, self.k)
            return routing.choosing(chosen)
        if self.name == "fixed":
            return routing.choosing(torch.full_like(routing.indices[:, :1], self.fixed))
        return routing

    def shares(self, routing: Routing, weight: Tensor) -> Tensor:
        """[M] sum over the instances of each teacher's part in their distillation; `weight` [B] is 0 for padding.

        How often it was among the k, over k; where all are mixed, its weight.
        """
        if self.mixes:
            parts = routing.probs.detach()
            if self.judges:  # a sum of 0 is of an instance that nobody sees
                whole = parts.sum(dim=1, keepdim=True)
                parts = parts / torch.where(whole > 0, whole, 1.0)
            return (parts * weight.unsqueeze(1)).sum(dim=0)
        return routing.counts.to(torch.float64) / routing.indices.shape[1]

    def distillation(
        self,
        student: Tensor,
        teachers: Tensor,
        routing: Routing,
        temperature: float,
        *,
        rows: Tensor | None = None,
        chosen: bool = False,
        label: Tensor | None = None,
        kd_scale: Tensor | None = None,
        task_scale: Tensor | None = None,
        ignore_index: int | None = None,
        several: bool = False,
        class_weights: Tensor | None = None,
    ) -> Distilled:
        """Distillation and task loss per instance [B]; the teachers [B, M, C, ...] are constants, or with `rows` a
        table [N, M, C, ...] of them, or `chosen`: [B, k, C, ...] of the routing's k alone. The other arguments are
        those of `kernels.distillation_loss`, or for `several` classes at once of `bernoulli_distillation`."""
        learns = self.signal in ("distill", "both")
        indices: Tensor | None = routing.indices
        weights = None
        if self.mixes:
            indices, weights = None, routing.probs
        elif self.name == "topk-weighted":
            at = routing.indices if routing.seen is None else routing.indices.clamp(min=0)
            weights = routing.log_probs.gather(1, at)
            if routing.seen is not None:  # a slot of nobody has no part
                weights = weights.masked_fill(routing.indices < 0, LOWEST)
            weights = weights.softmax(dim=1)
        if weights is not None and not learns:
            weights = weights.detach()
        if chosen:
            indices = torch.arange(routing.indices.shape[1], device=student.device).expand_as(routing.indices)
            if routing.seen is not None:
                indices = torch.where(routing.indices < 0, -1, indices)
        if several:
            return bernoulli_distillation(student, teachers, indices, weights, label, rows, temperature, self.mixes,
                                          kd_scale, task_scale, class_weights,
                                          gaps=routing.seen is not None)  # fmt: skip
        return distillation_loss(
            student, teachers, indices, weights, label, rows, temperature, self.mixes, kd_scale, task_scale,
            -100 if ignore_index is None else ignore_index, gaps=routing.seen is not None,
        )  # fmt: skip

    def task_signal(self, teachers: Tensor, label: Tensor, routing: Routing) -> Tensor:
        """-log sum_m r_m p_m(y) per instance [B]: trains the router towards teachers that are right there.

        The probabilities r alone receive a gradient. Dense labels take the mean over the pixels with a label in range,
        labels of several classes at once [B, C] the mean over those that are known.
        An instance that no teacher sees has none.
        """
        rows = self._task_signal(teachers, label, routing)
        return rows if routing.seen is None else torch.where(routing.seen.any(dim=1), rows, 0.0)

    def _task_signal(self, teachers: Tensor, label: Tensor, routing: Routing) -> Tensor:
        if label.dim() == 2:  # a class is as a pixel of which there is yes or no
            teachers, label = as_pairs(teachers).unsqueeze(4), label.unsqueeze(2)
        log_p = teachers.detach().float().log_softmax(dim=2)
        if label.dim() == 1:  # without a label any class: such a row counts nothing
            right = log_p.gather(2, label.clamp(min=0).view(-1, 1, 1).expand(-1, log_p.shape[1], 1)).squeeze(2)
            return -(routing.log_probs + right).logsumexp(dim=1)
        valid = (label >= 0) & (label < log_p.shape[2])
        target = label.clamp(0, log_p.shape[2] - 1).unsqueeze(1).unsqueeze(2).expand(-1, log_p.shape[1], 1, -1, -1)
        right = log_p.gather(2, target).squeeze(2)
        mixed = -(routing.log_probs[:, :, None, None] + right).logsumexp(dim=1)
        return (mixed * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp(min=1)
