"""Where data are kept that nobody gave a place."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """$MSTDISTILL_HOME, else the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("MSTDISTILL_HOME") or Path(cache) / "mstdistill")
