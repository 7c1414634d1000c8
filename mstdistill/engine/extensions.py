"""Locks that a killed process left on extensions it was building: the next one would wait for it for ever."""

from __future__ import annotations

import os
import time
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
