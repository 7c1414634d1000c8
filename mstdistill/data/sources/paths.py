"""A table beside folders of files: its columns of paths are read as pictures and sounds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_SOUNDS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")
# So many of a column's cells say what it holds.
_LOOKED_AT = 100


def with_files(splits: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    """The same rows, with pictures and sounds where a column of texts names files.

    That is a column whose first cells all end as pictures do, or as sounds do, and one of them is there. An empty cell
    is an instance that lacks the modality.

    Args:
        splits: split -> `datasets.Dataset`.
        folder: what relative paths start from.

    Returns:
        The splits, and what changes when the named files do; an empty text where none is named.
    """
    digest, found = hashlib.sha256(), dict(splits)
    named = False
    for split, data in splits.items():
        for column, feature in dict(data.features).items():
            if str(getattr(feature, "dtype", "")) not in ("string", "large_string"):
                continue
            cells = [(cell or "").strip() for cell in data.select_columns([column])[column]]
            kind = _kind(cells, folder)
            if kind is not None:
                paths = [str(folder / cell) if cell else None for cell in cells]
                found[split] = _replaced(found[split], column, paths, kind)
                digest.update(repr([column, *map(_state, paths)]).encode())
                named = True
    return found, digest.hexdigest() if named else ""


def _kind(cells: list[str], folder: Path) -> str | None:
    """ "Image" or "Audio" for cells that are paths of such files."""
    some = list(islice(filter(None, cells), _LOOKED_AT))
    for kind, ends in (("Image", _PICTURES), ("Audio", _SOUNDS)):
        if some and all(cell.lower().endswith(ends) for cell in some):
            return kind if any((folder / cell).is_file() for cell in some) else None
    return None


def _replaced(data: Any, column: str, paths: list[str | None], kind: str) -> Any:
    """With a column of `datasets`' own kind for files; by itself it can't make one of every type of text."""
    import datasets
    import pyarrow as pa

    features = datasets.Features({**data.features, column: getattr(datasets, kind)()})
    files = pa.StructArray.from_arrays([pa.nulls(len(paths), pa.binary()), pa.array(paths, pa.string())],
                                       ["bytes", "path"], mask=pa.array([path is None for path in paths]))  # fmt: skip
    table = data.data.table
    table = table.set_column(table.column_names.index(column), column, files)
    return datasets.Dataset(table.cast(features.arrow_schema), info=datasets.DatasetInfo(features=features))


def _state(path: str | None) -> tuple[int, int]:
    """A file's size and time; (-1, -1): it isn't there."""
    try:
        found = Path(path or "").stat()
    except OSError:
        return -1, -1
    return (found.st_size, found.st_mtime_ns) if path else (-1, -1)
