"""All that the programs of `ready.py` import, imported once before they are forked."""

from __future__ import annotations

import gc
from contextlib import suppress

from . import forking  # isort: skip  # noqa: F401  before any work

import datasets  # noqa: F401
import huggingface_hub.repocard  # noqa: F401

import mstdistill.methods.mst
import mstdistill.stages.alone
import mstdistill.stages.cotrain
import mstdistill.stages.distill
import mstdistill.stages.specialise  # noqa: F401

from . import toy  # noqa: F401

with suppress(ImportError):  # an extra
    import deepspeed  # noqa: F401

gc.collect()
gc.freeze()
