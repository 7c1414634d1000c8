"""Writing logits by key as an .npz file; read by `sources.keyed_tables`."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..files import saving

_ROWS = 4096


def one_name_each(names: Mapping[str, Sequence[str | None]], mend: str) -> list[str]:
    """Names of the instances of all splits, one after the other.

    Args:
        names: by split.
        mend: what to do instead, for people.

    Raises:
        DataError: an instance without a name, or two of one name.
    """
    seen: dict[str, str] = {}
    for split, found in names.items():
        for i, name in enumerate(found):
            if name is None:
                raise DataError(f"{split}, instance {i} has no name to be found by; {mend}")
            if name in seen:
                raise DataError(f"{name!r} names two instances, {seen[name]} and {split} {i}; {mend}")
            seen[name] = f"{split} {i}"
    return list(seen)


def write_keyed(path: Path, keys: Sequence[str], parts: Mapping[str, Sequence[np.ndarray]]) -> None:
    """An .npz file as `numpy.savez` writes it, which can be mapped: `keys` [K], and arrays [K, ...].

    Args:
        parts: name -> pieces that follow one another; written without being put together.

    Raises:
        CheckpointError: it can't be written.
    """
    arrays = {"keys": [np.array(keys, dtype=np.str_)], **parts}
    with saving(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, pieces in arrays.items():
            shape = (sum(map(len, pieces)), *pieces[0].shape[1:])
            header = {"descr": np.lib.format.dtype_to_descr(pieces[0].dtype), "fortran_order": False, "shape": shape}
            # a member of a fixed date: the same logits are the same bytes
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for piece in pieces:
                    for start in range(0, len(piece), _ROWS):
                        member.write(np.ascontiguousarray(piece[start : start + _ROWS]).tobytes())
