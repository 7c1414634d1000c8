"""Memory that a step on a CPU frees stays with the process for the next step.

glibc hands large blocks back to the kernel when a tensor dies and asks for them again at the next one, page by page,
each cleared first: a fifth of a step of convolutions. What is kept is what was alive at once, and the gaps between: a
fourth more for a small network whose maps are most of its memory.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
# Where glibc's own thresholds stand once a process has freed a few large tensors.
_USUAL = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 2**25), (_TRIM_THRESHOLD, 2**26))
_CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES", "LD_PRELOAD")
_depth = 0


@cache
def _glibc() -> Any:
    """None on another system, and where the user has chosen how memory is had."""
    if sys.platform != "linux" or any(os.environ.get(name) for name in _CHOSEN):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


@contextmanager
def kept(wanted: bool = True) -> Iterator[None]:
    """Within the block freed memory is kept; at its end it goes back."""
    global _depth
    library = _glibc() if wanted else None
    if library is None:
        yield
        return
    _depth += 1
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        _depth -= 1
        if not _depth:
            for what, value in _USUAL:
                library.mallopt(what, value)
            library.malloc_trim(0)


def give_back() -> None:
    """Between two stages, which need memory of other shapes."""
    library = _glibc() if _depth else None
    if library is not None:
        library.malloc_trim(0)
