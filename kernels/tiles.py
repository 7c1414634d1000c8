"""The launch table: how large a tile, how many warps. Choices are data, `tiles.json`; `MSTDISTILL_TILES=FILE` lays
another table over it, such as `python -m mstdistill.kernels.tune` writes.

    {"any": {"route": [{"to": 2, "rows": 256, "warps": 2}, ...], "attend tf32": [...]}, "small": {...}, "sm_90": {...}}

Devices first: "any", families ("amd", "small": NVIDIA's with about 100 KB of shared memory), capabilities; the
nearest that knows the kernel counts. Then the kernel, for all types or for one kind of them. Of its choices the first
whose `to` is at least the size (the padded teachers, classes, head width, ...) is taken; one without `to` is for all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch

Choice = Mapping[str, int]
Kernels = Mapping[str, list[dict[str, int]]]
Table = dict[str, Kernels]

PACKAGED = Path(__file__).with_name("tiles.json")
# kernel -> (what is chosen, the kinds of types or layouts that may have choices of their own)
_TYPES = ("half", "float")
_SCORES = ("tf32", "bf16", "ieee", "float64")
KERNELS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "route": (("rows", "warps"), ()),
    "kd_rows": (("rows", "warps"), _TYPES),
    "kd_wide": (("block", "warps"), _TYPES),
    "kd_dense": (("pixels", "warps"), _TYPES),
    "bernoulli": (("rows", "warps"), _TYPES),
    "scale_rows": (("block", "warps"), ()),
    "apply_mask": (("features", "positions", "warps"), ("vectors", "tokens", "maps")),
    "attend": (("rows", "columns", "warps", "stages"), _SCORES),
    "attend_backward": (("rows", "columns", "warps", "stages"), _SCORES),
}
# Less shared memory than this: the attention's tiles for large GPUs may not fit.
_SMALL = 160_000
# Looked up at each launch, see launch.py.
os.environ.setdefault("MSTDISTILL_TILES", "")

_tried: dict[str, list[dict[str, int]]] = {}


def choose(kernel: str, size: int, kind: str = "", where: tuple[str, ...] = ("any",)) -> Choice:
    """What a launch takes.

    Args:
        kernel: of `KERNELS`.
        size: the shape's class; see the kernels' launchers.
        kind: of types or layouts.
        where: names of the device, the nearest first; see `names_of`.

    Raises:
        ValueError: the table of `MSTDISTILL_TILES` can't be used.
    """
    tried = _first([_tried], kernel, size, kind) if _tried else None
    return tried or _chosen(os.environ["MSTDISTILL_TILES"], kernel, size, kind, where)


@lru_cache(maxsize=4096)
def _chosen(path: str, kernel: str, size: int, kind: str, where: tuple[str, ...]) -> Choice:
    layers: list[Kernels] = []
    for table in [read(Path(path))] if path else []:
        layers += [table[name] for name in where if name in table]
    layers += [_packaged()[name] for name in where if name in _packaged()]
    found = _first(layers, kernel, size, kind)
    if found is None:
        raise ValueError(f"no tile for {kernel} {kind} of size {size} on {where[0]}")
    return found


def _first(layers: list[Kernels], kernel: str, size: int, kind: str) -> Choice | None:
    for layer in layers:
        for key in (f"{kernel} {kind}", kernel):
            for entry in layer.get(key, ()):
                if size <= entry.get("to", size):
                    return entry
    return None


@contextmanager
def trying(key: str, entry: dict[str, int]) -> Iterator[None]:
    """Within: this choice before all others."""
    _tried[key] = [entry]
    try:
        yield
    finally:
        del _tried[key]


@cache
def _packaged() -> Table:
    return read(PACKAGED)


@cache
def read(path: Path) -> Table:
    """A table, looked over.

    Raises:
        ValueError: it isn't there, or holds what no kernel knows; with the place.
    """
    try:
        table: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"MSTDISTILL_TILES={path}: can't be read as JSON ({error})") from None
    if not isinstance(table, dict) or not all(isinstance(kernels, dict) for kernels in table.values()):
        raise ValueError(f"{path}: must give devices, of each its kernels, of each a list of choices")
    for device, kernels in table.items():
        for key, entries in kernels.items():
            wrong = _wrong(key, entries)
            if wrong:
                raise ValueError(f"{path}: {device} {key}: {wrong}")
    found: Table = table
    return found


def _wrong(key: str, entries: Any) -> str:
    """What is wrong with a kernel's choices, or an empty string."""
    kernel, _, kind = key.partition(" ")
    if kernel not in KERNELS:
        return f"no such kernel; it is one of {', '.join(KERNELS)}"
    fields, kinds = KERNELS[kernel]
    if kind and kind not in kinds:
        return f"no such kind; it is one of {', '.join(kinds) or 'none'}"
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or set(entry) - {"to"} != set(fields):
            return f"{json.dumps(entry)} must give {', '.join(fields)}, and may give to"
        if any(not isinstance(value, int) or value < 1 for value in entry.values()):
            return f"{json.dumps(entry)} must hold whole numbers from 1"
        odd = [name for name in fields if name != "stages" and entry[name] & (entry[name] - 1)]
        if odd:
            return f"{json.dumps(entry)}: {odd[0]} must be a power of two"
    return ""


def names_of(target: str, small: bool = False) -> tuple[str, ...]:
    """A target of the compiler ("sm_90", "gfx942") and the families that it belongs to."""
    return (target, *(["amd"] if target.startswith("gfx") else ["small"] if small else []), "any")


@cache
def device_names(device: torch.device) -> tuple[str, ...]:
    """`names_of` a device; of a CPU, where the interpreter runs, "any"."""
    if device.type != "cuda":
        return ("any",)
    properties: Any = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return names_of(properties.gcnArchName.split(":")[0])
    small = properties.shared_memory_per_block_optin < _SMALL
    return names_of(f"sm_{properties.major}{properties.minor}", small)


def kind_of(*dtypes: torch.dtype) -> str:
    """Whether logits are all of half precision, or not."""
    return "half" if all(dtype.itemsize == 2 for dtype in dtypes) else "float"
