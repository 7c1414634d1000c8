"""Files whose rows are logits with a key each: NumPy's .npz, and whatever tables a user's own data may be.

    .npz                    `keys` [K], texts or whole numbers; `logits` [K, C], or `values` and `indices` [K, k]
    a table (`SUFFIXES`)    a column of keys; a column of lists `logits`, or two of them, `values` and `indices`, or a
                            column a class

Nothing large is copied: .npz as `numpy.savez` writes it is mapped, and so are lists, from the Arrow files that
`datasets` makes of a table. A column a class becomes one array in float32, a compressed .npz one of its own type.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError, first_line, nearest
from .keys import as_text
from .opening import SUFFIXES, open_raw

# Where the key's name is left at its default, .npz calls it so.
_KEYS = {"key": "keys"}
_LOCAL_HEADER = 30  # bytes of a zip's member before its name and extra


class Rows(Protocol):
    """Rows of numbers of one width, in memory or not."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def take(self, rows: Tensor) -> Tensor:
        """These rows [B, width]; a copy."""
        ...


@dataclass(frozen=True)
class KeyedTable:
    """A file's rows.

    Attributes:
        keys: of each row by their text; None where it has none.
        values: logits of all classes, or logarithms of probabilities of the classes `indices`.
        indices: which classes; None: all.
    """

    keys: Sequence[str | None]
    values: Rows
    indices: Rows | None


def read_keyed(path: Path, key: str, names: Sequence[str], num_classes: int) -> KeyedTable:
    """A file of logits by key.

    Args:
        key: the column of the keys.
        names: of the classes, where they have any: a column a class may be called so.

    Raises:
        DataError: it can't be read, or holds no such logits; in one line.
    """
    if path.suffix not in SUFFIXES and path.suffix != ".npz":
        raise DataError(f"{path}: logits are read from .npz, {', '.join(sorted(SUFFIXES))} (by key), .safetensors, "
                        ".npy (by order), or are a modality's name")  # fmt: skip
    if not path.is_file():
        raise DataError(f"{path} can't be read as logits (there is no such file)")
    found = _npz(path, _KEYS.get(key, key)) if path.suffix == ".npz" else _table(path, key, names, num_classes)
    shapes = [list(part.shape) for part in (found.values, found.indices) if part is not None]
    if any(len(shape) != 2 or shape[0] != len(found.keys) for shape in shapes) or shapes[0] != shapes[-1]:
        raise DataError(f"{path}: {len(found.keys):,} keys and numbers of shape {' and '.join(map(str, shapes))}; a "
                        "row a key is wanted")  # fmt: skip
    if shapes[0][1] > num_classes or (found.indices is None and shapes[0][1] != num_classes):
        raise DataError(f"{path}: {shapes[0][1]} numbers a row; the data have {num_classes} classes")
    return found


class _Array:
    """Rows of an array, which may be a mapped file in any byte order and at any address."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape = array, tuple(array.shape)

    def take(self, rows: Tensor) -> Tensor:
        """See `Rows`."""
        found = np.ascontiguousarray(self.array[rows.numpy()])
        return torch.from_numpy(found.astype(found.dtype.newbyteorder("="), copy=False))


def _npz(path: Path, key: str) -> KeyedTable:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            parts = ["logits"] if "logits" in members else ["values", "indices"]
            for name in (key, *parts):
                if name not in members:
                    raise DataError(f"{path} has no array {name!r}; it has {', '.join(members) or 'none'}; wanted are "
                                    f"{key!r} with 'logits', or with 'values' and 'indices'")  # fmt: skip
            keys, *arrays = (_member(path, archive, members[name]) for name in (key, *parts))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} can't be read as logits ({first_line(error)})") from None
    if keys.ndim != 1:
        raise DataError(f"{path}: {key!r} has shape {list(keys.shape)}; a key a row is wanted")
    for name, array, kinds in zip(parts, arrays, ("f", "iu"), strict=False):
        if array.dtype.kind not in kinds or array.dtype.itemsize > 8:
            wanted = "floating numbers" if kinds == "f" else "whole numbers"
            raise DataError(f"{path}: {name!r} holds {array.dtype}; {wanted} are wanted")
    rows = [_Array(array) for array in arrays]
    return KeyedTable(as_text(keys.tolist(), f"{path}: {key!r}"), rows[0], rows[1] if len(rows) > 1 else None)


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """An array of a zip file, mapped where it lies there as it is."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        start = stream.tell()
    if dtype.hasobject:
        raise DataError(f"{path}: {info.filename} holds Python objects, which are never unpickled; save texts as "
                        "np.array(keys, dtype=str)")  # fmt: skip
    if info.compress_type != zipfile.ZIP_STORED or 0 in shape or dtype.itemsize == 0:
        with archive.open(info) as stream:
            found: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
            return found
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = info.header_offset + _LOCAL_HEADER + lengths + start
    return np.memmap(path, dtype, "r", offset, shape, order="F" if fortran else "C")


def _table(path: Path, key: str, names: Sequence[str], num_classes: int) -> KeyedTable:
    import pyarrow as pa

    raw = open_raw(str(path), False)
    pa.default_memory_pool().release_unused()  # of the first reading, which makes Arrow files of a table
    data = next(iter(raw.written.values()))
    table = data.data
    if key not in table.column_names:
        raise DataError(f"{path} has no column {key!r} for the keys (its teacher's `key`); "
                        f"{nearest(key, table.column_names)}")  # fmt: skip
    keys = as_text(table.column(key).to_pylist(), f"{path}: column {key!r}")
    lists = [field.name for field in table.schema if isinstance(field.type, _lists(pa))]
    if "logits" in lists:
        return KeyedTable(keys, _listed(path, table, "logits", keys), None)
    if {"values", "indices"} <= set(lists):
        return KeyedTable(keys, _listed(path, table, "values", keys), _listed(path, table, "indices", keys, whole=True))
    columns = _class_columns(path, table, key, names, num_classes)
    return KeyedTable(keys, _Array(_together(table, columns)), None)


def _lists(pa: Any) -> tuple[type, ...]:
    return pa.ListType, pa.LargeListType, pa.FixedSizeListType


def _listed(path: Path, table: Any, name: str, keys: Sequence[str | None], whole: bool = False) -> Rows:
    """A column of lists, one width in all rows, as it is mapped."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column(name)
    kind = column.type.value_type
    if not (pa.types.is_integer(kind) or (pa.types.is_floating(kind) and not whole)):
        raise DataError(f"{path}: column {name!r} holds lists of {kind}; {'whole ' if whole else ''}numbers are wanted")
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy()
    width = int(lengths[0]) if len(lengths) else 0
    for start, chunk in zip(np.cumsum([0, *map(len, column.chunks)]), column.chunks, strict=False):
        here = lengths[start : start + len(chunk)] != width
        if not here.any() and chunk.flatten().null_count:
            here = np.array([None in row for row in chunk.to_pylist()])
        if here.any():
            row = int(start) + int(here.argmax())
            what = f"{max(lengths[row], 0)} numbers where others have {width}"
            raise DataError(f"{path}: column {name!r}: row {row} (key {keys[row]!r}) has "
                            f"{what if lengths[row] != width else 'nothing in places of its list'}")  # fmt: skip
    pieces = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, width) for chunk in column.chunks]
    return _Listed(pieces, (len(column), width))


class _Listed:
    """Rows of many mapped pieces, as Arrow files have them."""

    def __init__(self, pieces: list[np.ndarray], shape: tuple[int, ...]) -> None:
        self.pieces, self.shape = pieces, shape
        self.starts = np.cumsum([0, *map(len, pieces)])

    def take(self, rows: Tensor) -> Tensor:
        """See `Rows`; tables hold doubles because JSON and Python do, not because anyone wants them."""
        kind = self.pieces[0].dtype
        out = np.empty((len(rows), self.shape[1]), dtype=np.float32 if kind == np.float64 else kind)
        owner = np.searchsorted(self.starts, rows.numpy(), side="right") - 1
        places = rows.numpy() - self.starts[owner]
        for i, (piece, at) in enumerate(zip(owner.tolist(), places.tolist(), strict=True)):
            out[i] = self.pieces[piece][at]  # a batch has hardly two rows of one piece
        return torch.from_numpy(out)


def _class_columns(path: Path, table: Any, key: str, names: Sequence[str], num_classes: int) -> list[str]:
    """The column of each class: by the classes' names; else by the numbers that columns of numbers end in; else by
    their order in the file."""
    import pyarrow as pa

    there = [name for name in names if name in table.column_names]
    if names and len(there) == len(names):
        found = list(names)
    else:
        found = [field.name for field in table.schema if field.name != key
                 and (pa.types.is_floating(field.type) or pa.types.is_integer(field.type))]  # fmt: skip
        if there and names:
            missing = next(name for name in names if name not in there)
            raise DataError(f"{path} has a column for class {there[0]!r} and none for class {missing!r}")
        if len(found) != num_classes:
            raise DataError(f"{path} has {len(found)} columns of numbers beside the key ({', '.join(found[:6])}"
                            f"{', ...' if len(found) > 6 else ''}); the data have {num_classes} classes; wanted are a "
                            "column a class, or one of lists, 'logits'")  # fmt: skip
        ends = [int(match[0]) if (match := re.search(r"\d+$", name)) else -1 for name in found]
        if sorted(ends) == list(range(num_classes)):
            found = [name for _, name in sorted(zip(ends, found, strict=True))]
    for name in found:
        kind = table.schema.field(name).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise DataError(f"{path}: column {name!r}, of a class, holds {kind}; numbers are wanted")
    return found


def _together(table: Any, columns: Sequence[str]) -> np.ndarray:
    """[K, C] float32 of columns; what isn't there is NaN."""
    out, at = np.empty((table.num_rows, len(columns)), dtype=np.float32), 0
    for batch in table.select(list(columns)).to_batches():
        for c in range(len(columns)):
            out[at : at + batch.num_rows, c] = batch.column(c).to_numpy(zero_copy_only=False)
        at += batch.num_rows
    return out
