"""Feature files as research groups hand them out: an array in .npy, .npz, .h5, or pickled (perhaps zipped)."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError

# What an array's own pickle is made of; nothing else is ever looked up, so nothing else can run.
_ALLOWED = {
    (module, name)
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric",
                   "numpy._core.numeric")
    for name in ("ndarray", "dtype", "_reconstruct", "_frombuffer")
} | {("_codecs", "encode")}  # fmt: skip


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickled NumPy arrays and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"holds {module}.{name}, which is no array")
        return super().find_class(module, name)


def read_features(path: Path) -> np.ndarray:
    """The one array in a feature file, as float32.

    Raises:
        DataError: missing, damaged, another type of file, or more than an array in it.
    """
    try:
        found = _read(path.suffix, path.read_bytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError, AttributeError,
            IndexError, ImportError, TypeError) as error:  # fmt: skip
        line = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise DataError(f"{path}: no array can be read from it ({line}); fetch it again") from None
    return np.ascontiguousarray(found, dtype=np.float32)


def _arrays_in(names: Sequence[str]) -> list[str]:
    """What an archive holds beside folders and what systems leave in them; of several files the pickles."""
    parts = {name: name.split("/") for name in names if not name.endswith("/")}
    kept = [name for name, path in parts.items() if "__MACOSX" not in path and not path[-1].startswith(".")]
    return [name for name in kept if name.endswith(".pkl")] or kept if len(kept) > 1 else kept


def _read(suffix: str, content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    if suffix == ".zip":
        with zipfile.ZipFile(stream) as archive:
            names = _arrays_in(archive.namelist())
            if len(names) != 1:
                raise ValueError(f"{len(names)} files in the archive, where one is expected")
            return _read(Path(names[0]).suffix, archive.read(names[0]))
    if suffix == ".npy":
        return np.asarray(np.load(stream, allow_pickle=False))
    if suffix == ".npz":
        arrays = np.load(stream, allow_pickle=False)
        return np.asarray(arrays[arrays.files[0]])
    if suffix in (".h5", ".hdf5"):
        import h5py

        with h5py.File(stream, "r") as file:
            return np.asarray(file[next(iter(file))])
    found = _ArrayUnpickler(stream).load()
    if not isinstance(found, np.ndarray) or found.dtype.hasobject:
        raise ValueError(f"a {type(found).__name__}, not an array of numbers")
    return found
