"""Which form of an operation runs: Triton on a GPU, plain PyTorch elsewhere, or what `MSTDISTILL_KERNELS` says.

`MSTDISTILL_KERNELS=auto` (default) takes Triton where every tensor is on a GPU that Triton can compile for, `torch`
never does, `triton` insists. With `TRITON_INTERPRET=1` Triton's interpreter runs the kernels on the CPU, for tests.
`MSTDISTILL_KERNELS_CHECK=1` looks into index tensors on a GPU too, at the price of waiting for it.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.compiler import is_compiling

MODES = ("auto", "triton", "torch")
MIN_TRITON = (3, 6)
# Looked up at each call; to look for what isn't there costs 7 us, a thirtieth of a small batch's routing.
os.environ.setdefault("MSTDISTILL_KERNELS", "auto")


@lru_cache(maxsize=1)
def triton_missing() -> str:
    """Why Triton can't be used at all, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    from importlib.metadata import version

    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm"):
        try:
            found = version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if tuple(int(part) for part in found.split(".")[:2]) < MIN_TRITON:
            return f"triton {found} is older than {MIN_TRITON[0]}.{MIN_TRITON[1]}"
        return ""
    return ""


@cache
def gpu_unsupported(device: torch.device) -> str:
    """Why Triton can't compile for this GPU, or an empty string."""
    if torch.version.hip is not None:
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return "" if major >= 8 else f"a GPU of compute capability {major}.{minor}; the kernels need 8.0 or newer"


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _mode() -> str:
    """What was asked for: a constant for torch.compile."""
    try:
        mode = os.environ["MSTDISTILL_KERNELS"]
    except KeyError:
        return "auto"
    if mode not in MODES:
        raise ValueError(f"MSTDISTILL_KERNELS={mode!r}: must be one of {', '.join(MODES)}")
    return mode


def _missing() -> str:
    return triton_missing()


def _looks_into_indices() -> bool:
    return os.environ.get("MSTDISTILL_KERNELS_CHECK", "0") == "1"


def _unsupported(device: torch.device) -> str:
    return gpu_unsupported(device)


# `torch.compiler.assume_constant_result` by its mark: calling it would import the compiler, seconds of start-up
_mode._dynamo_marked_constant = True  # type: ignore[attr-defined]
_missing._dynamo_marked_constant = True  # type: ignore[attr-defined]
interpreted._dynamo_marked_constant = True  # type: ignore[attr-defined]
_unsupported._dynamo_marked_constant = True  # type: ignore[attr-defined]


def use_triton(*tensors: Tensor | None) -> bool:
    """Whether an operation on these tensors takes its Triton form; decided at each call.

    Raises:
        ValueError: an unknown mode, tensors on several devices, or Triton asked for where it can't run.
    """
    mode, device = _mode(), None
    for x in tensors:
        if x is not None:
            if device is None:
                device = x.device
            elif x.device != device:
                raise ValueError(f"tensors on {device} and {x.device}: all must be on one device")
    if device is None or mode == "torch" or (mode == "auto" and device.type == "cpu"):
        return False
    why = _missing()
    if not why and device.type == "cuda":
        why = _unsupported(device)
    elif not why and not (mode == "triton" and device.type == "cpu" and interpreted()):
        why = f"tensors are on {device.type}: move them to a GPU, or set TRITON_INTERPRET=1 before the start"
    if why and mode == "triton":
        raise ValueError(f"MSTDISTILL_KERNELS=triton: {why}")
    return not why


def plain_cpu(x: Tensor) -> bool:
    """Whether a tensor is on a CPU and not being compiled; it may be a fake one, of a plan."""
    return x.is_cpu and not is_compiling() and (type(x) in _REAL or fake(x))


def truth(flag: Tensor, planned: bool) -> bool:
    """What a tensor of one truth value says; of a fake one, what a plan takes for it."""
    return planned if fake(flag) else bool(flag)


_REAL = (Tensor, torch.nn.Parameter)


def fake(x: Tensor) -> bool:
    """Whether a tensor is one of a plan, without numbers."""
    return type(x).__name__ == "FakeTensor"


def check_indices(name: str, indices: Tensor, limit: int) -> None:
    """Raise ValueError where an index is not in [0, limit); on a GPU only if told, since it waits."""
    if is_compiling() or indices.numel() == 0:
        return
    if indices.is_cuda and (not _looks_into_indices() or torch.cuda.is_current_stream_capturing()):
        return
    ends = indices.aminmax()
    low, high = ends.min.item(), ends.max.item()
    if low < 0 or high >= limit:
        raise ValueError(f"{name}: holds {low if low < 0 else high}; must be between 0 and {limit - 1}")


FLOATING = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))


def check_floating(**tensors: Tensor) -> None:
    """Raise ValueError where a tensor is not of a floating type that the kernels know."""
    for name, x in tensors.items():
        if x.dtype not in FLOATING:
            raise ValueError(f"{name}: dtype {x.dtype}; must be float16, bfloat16, float32 or float64")


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that sums of this type are held in: float64 for itself, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
