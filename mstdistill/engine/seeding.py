"""Seeds by name, so that one random choice never shifts another, and the whole random state for exact resumption."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def named_seed(seed: int, *names: object) -> int:
    """A seed in [0, 2^62) for a named purpose."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2


@contextmanager
def initialising(seed: int, *names: object) -> Iterator[None]:
    """Within the block torch's global generator starts from a named seed; afterwards it is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, "init", *names))
        yield


def seed_all(seed: int, *names: object) -> None:
    """Start every global generator of this process from a named seed."""
    value = named_seed(seed, *names)
    torch.manual_seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002  models of other people may draw from it
    random.seed(value)


def random_state() -> dict[str, Tensor]:
    """The state of every global generator, as tensors of fixed shapes."""
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, internal, spare = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_rest": torch.tensor([float(position), float(has_gauss), float(gauss)], dtype=torch.float64),
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "python_rest": torch.tensor([float("nan") if spare is None else spare], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Put every global generator where `random_state` found it."""
    torch.set_rng_state(state["torch"].clone())  # of a row of a larger tensor it would read another row
    position, has_gauss, gauss = state["numpy_rest"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))  # noqa: NPY002
    version, *internal = state["python"].tolist()
    spare = float(state["python_rest"][0])
    random.setstate((version, tuple(internal), None if spare != spare else spare))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].clone())
