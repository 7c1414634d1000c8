"""Cross-modal knowledge distillation with a mixture of specialised teachers (MST-Distill).

The public names; each is loaded when it is first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Recipe, load
    from .data.check.look import Report, check
    from .errors import MstdistillError
    from .pipeline import Result, distill, train
    from .student import Student
    from .teachers.mask import MaskNet1d, MaskNet2d, MaskNetTokens
    from .teachers.tap import Teacher

__version__ = "0.1.0"

_WHERE = {
    "DenseRouter": "routing", "MaskNet1d": "teachers.mask", "MaskNet2d": "teachers.mask",
    "MaskNetTokens": "teachers.mask", "MstdistillError": "errors", "Recipe": "config", "Result": "pipeline",
    "Router": "routing", "Student": "student", "Teacher": "teachers.tap", "distill": "pipeline", "load": "config",
    "Report": "data.check.look", "check": "data.check.look", "train": "pipeline",
}  # fmt: skip

__all__ = [
    "DenseRouter", "MaskNet1d", "MaskNet2d", "MaskNetTokens", "MstdistillError", "Recipe", "Report", "Result", "Router",
    "Student", "Teacher", "check", "distill", "load", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
