"""How a stage's module and its optimiser are joined over the processes, as the launch asked: one alone, DDP,
DeepSpeed's ZeRO or FSDP2.

The loop sees one interface. Whatever lies in shards meanwhile, weights and the optimiser's state come out whole and
named by the stage's own parameters: results and checkpoints are the same files under every engine and any number of
processes, so that a run goes on under another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .. import ranks
from ..config import OptimSettings
from ..state import load_state, state_of
from .checkpoint import optimizer_tensors, restore_optimizer
from .optimizer import build_optimizer, set_rate
from .seeding import random_state, restore_random_state

State = dict[str, Tensor]


class Joined:
    """Processes with a whole copy of the module each: one alone, or several under DDP.

    Args:
        module: of the stage.
        recorded: whether steps are recorded (see `graph`).

    Attributes:
        module: to be called.
        inner: what learns, unwrapped: the stage's own module, or a sharded copy of it.
        plain: the optimiser, unwrapped.
        optimizer: what is stepped, the same or Accelerate's wrapper around it.
    """

    def __init__(self, accelerator: Any, module: nn.Module, settings: OptimSettings, recorded: bool = False) -> None:
        self.accelerator, self.inner, self.settings = accelerator, module, settings
        self.plain = build_optimizer(settings, module, recorded)
        self.module, wrapped = self.prepare()
        # Accelerate's wrapper scales losses (fp16) and gathers gradients (XLA); for the rest it would only look for
        # packages at each step, which costs half a millisecond
        needed = getattr(accelerator, "scaler", None) is not None or accelerator.device.type == "xla"
        self.optimizer = wrapped if needed else self.plain

    def prepare(self) -> tuple[nn.Module, Any]:
        """The wrapped module and optimiser."""
        wrapped: tuple[nn.Module, Any] = self.accelerator.prepare(self.inner, self.plain)
        return wrapped

    def around(self, closes_step: bool) -> AbstractContextManager[Any]:
        """Where a micro-batch is computed: gradients travel with the last one of a step."""
        context: AbstractContextManager[Any] = nullcontext() if closes_step else self.accelerator.no_sync(self.module)
        return context

    def backward(self, loss: Tensor, closes_step: bool) -> None:
        """Add up a micro-batch's gradients."""
        self.accelerator.backward(loss)

    def step(self) -> None:
        """The optimiser's step, and gradients away."""
        if self.settings.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def forget(self) -> None:
        """Drop gradients that must not be stepped with."""
        self.plain.zero_grad()

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next step."""
        set_rate(self.plain, rate)

    def finite(self) -> bool:
        """Whether every weight is finite, on this process."""
        return all(bool(torch.isfinite(p).all()) for p in self.inner.parameters())

    def weights(self) -> State:
        """The whole module's state on the CPU; every process takes part."""
        return {name: x.detach().to("cpu", copy=True) for name, x in state_of(self.inner).items()}

    def moments(self) -> tuple[State, list[dict[str, Any]]]:
        """The whole optimiser's state as flat tensors `NUMBER.NAME` on the CPU, and its groups' settings; every process
        takes part."""
        tensors, groups = optimizer_tensors(self.plain)
        return {name: x.detach().to("cpu", copy=True) for name, x in tensors.items()}, groups

    def restore(self, weights: State, moments: State, groups: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what `weights` and `moments` gave."""
        load_state(self.inner, weights)
        restore_optimizer(self.plain, moments, [dict(group) for group in groups])

    def settle(self, loss: Callable[[], Tensor]) -> None:
        """After a resume: have gradients added up in the order of a run that was never stopped.

        DDP orders its buckets anew after its first step; sums over three or more processes round by that order.

        Args:
            loss: of any batch; nothing of it stays.
        """
        if not isinstance(self.module, nn.parallel.DistributedDataParallel) or ranks.world_size() < 3:
            return
        random, weights = random_state(), self.weights()
        self.module.train()
        self.backward(loss(), closes_step=True)
        self.forget()
        load_state(self.inner, weights)
        restore_random_state(random)

    def close(self) -> None:
        """Let go of what the engine holds."""
        self.accelerator.free_memory()
