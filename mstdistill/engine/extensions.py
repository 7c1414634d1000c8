"""What DeepSpeed builds at its start: locks that a killed build left, for which the next one would wait for ever, and
an operator that training has no use for."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

# No build of DeepSpeed's takes so long.
LEFT_AFTER = 900.0


def forget_left_locks(root: Path | None = None) -> list[Path]:
    """Take away locks on extensions that are older than any build, as DeepSpeed builds them at its start.

    Args:
        root: where extensions are built; None: torch's own place.

    Returns:
        The locks that were taken away.
    """
    if root is None:
        root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    gone = []
    for lock in sorted([*root.glob("*/lock"), *root.glob("*/*/lock")]):
        try:
            if time.time() - lock.stat().st_mtime > LEFT_AFTER:
                lock.unlink()
                gone.append(lock)
        except OSError:  # another process was faster
            continue
    return gone


def leave_out_inference() -> None:
    """On CPUs DeepSpeed would build an operator that adds up in shared memory, for inference alone: a minute of g++."""
    with suppress(ImportError, AttributeError):  # Accelerate says what is missing
        from deepspeed import ops

        ops.__compatible_ops__["deepspeed_shm_comm"] = False
