"""DeepSpeed's ZeRO: optimiser state (stage 1), gradients (2) and weights (3) lie in shards.

The stage keeps its own module; a copy of it is sharded, since stage 3 changes a module for good. DeepSpeed steps inside
its backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..config import OptimSettings
from ..errors import ConfigError
from ..state import load_state, state_of
from .joined import State
from .twin import TwinJoined


class ZeroJoined(TwinJoined):
    """A copy of the stage's module under DeepSpeed; see `Joined`."""

    def __init__(self, accelerator: Any, module: nn.Module, settings: OptimSettings, batch_size: int) -> None:
        plugin = accelerator.state.deepspeed_plugin
        self.stage = int(plugin.deepspeed_config.get("zero_optimization", {}).get("stage", 0))
        content = plugin.deepspeed_config
        for key in ("train_batch_size", "train_micro_batch_size_per_gpu"):
            content.pop(key, None)
        # the recipe decides; the loop adds up micro-batches itself
        content["train_micro_batch_size_per_gpu"] = batch_size
        content["gradient_accumulation_steps"] = 1
        content["gradient_clipping"] = settings.clip_norm or 0.0
        if "optimizer" in content or "scheduler" in content:
            raise ConfigError(
                "the DeepSpeed config has an optimizer or a scheduler; leave them out: the recipe says how stages learn"
            )
        super().__init__(accelerator, module, settings, adapt=lambda twin: None)
        self.learning = [p for p in self.inner.parameters() if p.requires_grad]

    @property
    def engine(self) -> Any:
        """DeepSpeed's."""
        return self.module

    def backward(self, loss: Tensor, closes_step: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(is_boundary=closes_step)
        self.engine.backward(loss)

    def around(self, closes_step: bool) -> Any:
        return nullcontext()  # the boundary, set in `backward`, says when gradients travel

    def step(self) -> None:
        self.engine.step()

    def forget(self) -> None:
        self.engine.optimizer.zero_grad()

    def set_rate(self, rate: float) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate

    def weights(self) -> State:
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters(list(self.inner.parameters()), modifier_rank=None, enabled=self.stage == 3):
            return {name: x.detach().to("cpu", copy=True) for name, x in state_of(self.inner).items()}

    def moments(self) -> tuple[State, list[dict[str, Any]]]:
        from deepspeed.utils import safe_get_full_optimizer_state

        tensors: State = {}
        steps = self._steps()
        stepped = bool(self.engine.optimizer.optimizer.state)
        for number, parameter in enumerate(self.learning if stepped else ()):
            for key in self._keys():
                value = safe_get_full_optimizer_state(parameter, key)
                if value is not None:
                    tensors[f"{number}.{key}"] = value.detach().to("cpu", copy=True).view(self._shape(parameter))
            if steps is not None and self.settings.optimizer != "sgd":
                tensors[f"{number}.step"] = torch.tensor(float(steps))
        first = self.engine.optimizer.param_groups[0]
        plain = (int, float, bool, tuple, type(None))
        group: dict[str, Any] = {k: v for k, v in first.items() if k != "params" and isinstance(v, plain)}
        return tensors, [{**group, "lr": float(first["lr"]), "params": list(range(len(self.learning)))}]

    def restore(self, weights: State, moments: State, groups: Sequence[Mapping[str, Any]]) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        with GatheredParameters(list(self.inner.parameters()), modifier_rank=0, enabled=self.stage == 3):
            if self.stage < 3 or torch.distributed.get_rank() == 0:
                load_state(self.inner, weights)
        self._start_moments(moments)
        names = {id(p): name for name, p in self.inner.named_parameters()}
        for number, parameter in enumerate(self.learning):
            safe_set_full_fp32_param(parameter, weights[names[id(parameter)]].to(self.accelerator.device))
            for key in self._keys():
                if f"{number}.{key}" in moments:
                    safe_set_full_optimizer_state(
                        parameter, moments[f"{number}.{key}"].to(self.accelerator.device), key
                    )

    def _start_moments(self, moments: State) -> None:
        """Room for the optimiser's state, which is otherwise made by the first step."""
        if not moments:
            return
        sharded = self.engine.optimizer
        for flat in self._flats():
            entry: dict[str, Tensor] = {key: torch.zeros_like(flat) for key in self._keys()}
            if "0.step" in moments:
                entry["step"] = torch.tensor(float(moments["0.step"]))
            sharded.optimizer.state[flat] = entry
        if hasattr(sharded, "_lazy_init_hp_params_optimizer_state"):  # stages 1 and 2 look it up by parameter
            sharded._lazy_init_hp_params_optimizer_state()

    def _flats(self) -> list[Tensor]:
        """This process's shards of the weights, as the optimiser steps them."""
        sharded = self.engine.optimizer
        name = "fp32_partitioned_groups_flat" if self.stage == 3 else "single_partition_of_fp32_groups"
        flats: list[Tensor] = list(getattr(sharded, name))
        return flats

    def close(self) -> None:
        self.engine.destroy()
        super().close()

    def _keys(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.settings.optimizer == "sgd" else ("exp_avg", "exp_avg_sq")

    def _steps(self) -> Tensor | None:
        entries = list(self.engine.optimizer.optimizer.state.values())
        return entries[0].get("step") if entries else None

    def _shape(self, parameter: Tensor) -> torch.Size:
        shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
        return shape
