"""Starting: an Accelerator that is what the launcher promised, or one line that says why not."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..errors import ConfigError
from ..kernels.launch import use_triton
from .extensions import forget_left_locks, leave_out_inference


def start(precision: str = "no", trackers: Sequence[str] = (), folder: Path | None = None, tf32: bool = True,
          timeout: float = 1800.0) -> Any:  # fmt: skip
    """An `accelerate.Accelerator`.

    Args:
        precision: "no", "bf16" or "fp16".
        trackers: names that Accelerate knows ("tensorboard", "wandb", "trackio", ...).
        folder: where trackers write.
        tf32: whether matrix products of float32 on a GPU are made in TF32, the mask kernels' included.
        timeout: seconds that a process waits for the others.

    Raises:
        ConfigError: kernels or precision that the device can't run, an unknown or missing tracker, or a launch that
            asked for more processes than came up.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs
    from accelerate.utils.dataclasses import LoggerType

    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available()
    if precision == "fp16" and cpu:
        raise ConfigError("precision=fp16 needs a GPU; use precision=bf16 or precision=no here")
    known = [str(name.value) for name in LoggerType]
    for name in trackers:
        if name not in known:
            raise ConfigError(f"run.trackers: unknown tracker {name!r}; known: {', '.join(sorted(known))}")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # one process may run several experiments, each with its own precision; Accelerate keeps the first one's
    AcceleratorState._reset_state()
    if _asked("DEEPSPEED"):
        forget_left_locks()
        if cpu:
            leave_out_inference()
    wait = timedelta(seconds=timeout)
    group = InitProcessGroupKwargs(backend="gloo", timeout=wait) if cpu else InitProcessGroupKwargs(timeout=wait)
    try:
        accelerator = Accelerator(
            cpu=cpu and not _asked("DEEPSPEED"),  # told of a CPU, Accelerate drops DeepSpeed, which runs there too
            mixed_precision=precision,
            log_with=list(trackers) or None,
            project_dir=str(folder) if folder else None,
            kwargs_handlers=[group] if several else [],
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"Accelerate can't start: {str(error).splitlines()[0]}") from None
    _check_promise(accelerator)
    if _asked("DEEPSPEED"):
        # transformers would build every model in shards from here on; only what learns is sharded, by its stage
        from transformers.integrations import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
    try:
        use_triton(torch.empty(0, device=accelerator.device))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not cpu:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
    return accelerator


def expect_unused(accelerator: Any) -> None:
    """From now on DDP looks at each step for parameters that have no part in it; else it waits for their gradients."""
    from accelerate.utils import DistributedDataParallelKwargs

    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)


def _asked(engine: str) -> bool:
    """Whether the launch asks for an engine: "DEEPSPEED" or "FSDP"."""
    return os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true"


def _check_promise(accelerator: Any) -> None:
    """A launcher may ask for several processes and get independent ones, each training its own model in silence."""
    promised = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != promised:
        raise ConfigError(
            f"the launcher promised {promised} processes, Accelerate joined {accelerator.num_processes}; on the CPU "
            "start with: ACCELERATE_USE_CPU=true torchrun --nproc_per_node N -m mstdistill ..."
        )
    got = str(accelerator.distributed_type).rsplit(".", maxsplit=1)[-1]
    for name in ("FSDP", "DEEPSPEED"):
        if _asked(name) and got != name:
            raise ConfigError(
                f"the launch config asks for {name}, Accelerate runs {got}: it is not available here; "
                "pick another file of launch_configs/"
            )


def trackers_started(accelerator: Any, name: str, settings: dict[str, Any]) -> None:
    """Start the trackers with the settings flattened to what they can show."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, (int, float, str, bool)):
            flat[prefix] = value
        else:
            flat[prefix] = str(value)

    walk("", settings)
    accelerator.init_trackers(name, config=flat)


def trackers_ended(accelerator: Any) -> None:
    """Close what `trackers_started` opened; the processes stay together for the next run of this program."""
    for tracker in getattr(accelerator, "trackers", []):
        tracker.finish()


def _leave() -> None:
    """At the program's end the processes part, which NCCL wants to be told."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


atexit.register(_leave)
