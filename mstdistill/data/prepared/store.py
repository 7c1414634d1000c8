"""Prepared data on disk: a Hugging Face `datasets` folder (Arrow, memory-mapped) and a card beside it.

Each modality is a column of flat fixed-size lists; its shape and dtype stand in the card. Reading is zero-copy: a batch
touches the pages of its own rows and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError, first_line, nearest
from ...files import replace_folder, write_text
from ..scale import Scale

CARD = "card.json"
# Before a modality's name: the column that says which instances have it, where some may lack it.
HAS = "has "
# A column up to this many bytes is held in one piece: picking rows across pieces would cost more than a small batch.
SMALL_COLUMN = 2**25


def write(
    folder: Path,
    splits: Mapping[str, Mapping[str, np.ndarray]],
    card: Mapping[str, Any],
) -> Path:
    """Write prepared splits, atomically: the folder appears complete or not at all.

    Args:
        folder: where.
        splits: split -> column -> array [N, ...]; the column `label` is required in each.
        card: what is to be known of the data (source, classes, ...); shapes, counts and fingerprints are added.

    Raises:
        DataError: columns of one split differ in length.
    """
    import datasets

    datasets.disable_progress_bars()
    card = dict(card)
    card["splits"], card["modalities"] = {}, {}
    with replace_folder(folder) as temporary:
        for split, columns in splits.items():
            lengths = {name: len(values) for name, values in columns.items()}
            if len(set(lengths.values())) > 1:
                raise DataError(f"split {split!r}: modality lengths differ: {lengths}")
            features = datasets.Features({name: _feature(values) for name, values in columns.items()})

            table = _table(datasets, columns, features)
            table.save_to_disk(str(temporary / split), max_shard_size="500MB")
            card["splits"][split] = {
                "rows": len(columns["label"]),
                "fingerprint": _fingerprint(columns),
                "per_class": {
                    str(k): int(n) for k, n in zip(*np.unique(columns["label"], return_counts=True), strict=True)
                } if columns["label"].ndim == 1 else {},
            }  # fmt: skip
            for name, values in columns.items():
                card["modalities"][name] = {"shape": list(values.shape[1:]), "dtype": str(values.dtype)}
        write_text(temporary / CARD, json.dumps(card, indent=1))
    return folder


def _table(datasets: Any, columns: Mapping[str, np.ndarray], features: Any) -> Any:
    """A `datasets.Dataset` over the arrays without a Python object per number."""
    import pyarrow as pa

    arrays = []
    for values in columns.values():
        if values.ndim == 1:
            arrays.append(pa.array(values))
        else:
            flat = np.ascontiguousarray(values).reshape(-1)
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), int(np.prod(values.shape[1:]))))
    table = pa.table(dict(zip(columns, arrays, strict=True)))
    return datasets.Dataset(datasets.table.InMemoryTable(table.cast(features.arrow_schema)))


def _feature(values: np.ndarray) -> Any:
    import datasets

    kind = datasets.Value(str(values.dtype))
    return kind if values.ndim == 1 else datasets.Sequence(kind, length=int(np.prod(values.shape[1:])))


def _fingerprint(columns: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(columns):
        values = columns[name]
        digest.update(f"{name} {values.shape} {values.dtype};".encode())
        for start in range(0, len(values), 4096):
            digest.update(np.ascontiguousarray(values[start : start + 4096]).tobytes())
    return digest.hexdigest()


class PreparedSplit:
    """A split of a prepared folder, memory-mapped.

    Attributes:
        fingerprint: hash of the contents, taken when they were written.
        naming: from the rows' own names to those that people give instances; None: they give none.
    """

    deterministic = True

    def __init__(self, folder: Path, split: str, card: Mapping[str, Any]) -> None:
        import datasets

        self.name = f"{folder.name}/{split}"
        try:
            self.fingerprint = str(card["splits"][split]["fingerprint"])
            data = datasets.load_from_disk(str(folder / split))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder}/{split} is missing or damaged ({first_line(error)}); prepare the data again"
            ) from None
        self.rows, self._keys = len(data), data.data.column("key") if "key" in data.column_names else None
        self.naming: Callable[[Sequence[str]], Sequence[str | None]] | None = list
        if self.rows != int(card["splits"][split]["rows"]):
            raise DataError(
                f"{folder}/{split} holds {self.rows} rows where its card says {card['splits'][split]['rows']}: "
                "truncated; prepare the data again"
            )
        self.columns = {
            name: _Column(data.data.column(name), kind, self.name) for name, kind in card["modalities"].items()
        }
        found = {name: _scale(kind) for name, kind in card["modalities"].items()}
        self.scales = {name: scale for name, scale in found.items() if scale is not None}

    def __len__(self) -> int:
        return self.rows

    @cached_property
    def present(self) -> dict[str, np.ndarray]:
        """See `data.present`."""
        rows = torch.arange(self.rows)
        return {name.removeprefix(HAS): column.take(rows).numpy() != 0 for name, column in self.columns.items()
                if name.startswith(HAS)}  # fmt: skip

    def called_at(self, position: int) -> str:
        """How a person finds an instance: its number, and the publisher's name for it; see `split.called`."""
        return f"instance {position}" + (f" ({self._keys[position].as_py()})" if self._keys is not None else "")

    def identities(self) -> Sequence[str | None] | None:
        """See `split.identities`."""
        return self.naming(self._keys.to_pylist()) if self._keys is not None and self.naming is not None else None

    def fetch(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Modalities [B, ...] as float32, scaled as the card says (integers that the card doesn't scale stay integers),
        and labels of these rows."""
        inputs, label = self.stored(index, modalities)
        return {name: self.scales[name](x) if name in self.scales else x for name, x in inputs.items()}, label

    def stored(self, index: np.ndarray, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Modalities [B, ...] in the dtype they are stored in, and labels of these rows."""
        rows = torch.from_numpy(np.ascontiguousarray(index))
        inputs = {}
        for name in modalities:
            if name not in self.columns or name == "label":
                known = {one for one in self.columns if one not in ("label", "part") and not one.startswith(HAS)}
                raise DataError(f"{self.name} has no modality {name!r}; {nearest(name, known)}")
            inputs[name] = self.columns[name].take(rows)
        return inputs, self.columns["label"].take(rows)


def _scale(kind: Mapping[str, Any]) -> Scale | None:
    """How a column's values become what networks take; None: as they are."""
    scale = kind.get("scale")
    if scale is None:
        return Scale() if kind["dtype"].startswith("float") else None
    low, high = (torch.tensor(scale[key], dtype=torch.float32) for key in ("low", "high"))
    spread = torch.where(high > low, high - low, torch.ones_like(high))
    if scale["axis"] is not None:
        view = [1] * (len(kind["shape"]) + 1)
        view[int(scale["axis"]) + 1] = -1
        low, spread = low.view(view), spread.view(view)
    return Scale(low, spread)


class _Column:
    """Rows of an Arrow column as tensors of a shape, without copying a large column.

    Args:
        kind: of the card, for its shape.
    """

    def __init__(self, chunked: Any, kind: Mapping[str, Any], owner: str) -> None:
        self.shape = tuple(kind["shape"])
        width = int(np.prod(self.shape)) if self.shape else 1
        self.parts: list[Tensor] = []
        for chunk in chunked.chunks:
            values = chunk.flatten() if self.shape else chunk
            array = values.to_numpy(zero_copy_only=True)
            if array.size != width * len(chunk):
                raise DataError(
                    f"{owner}: a column doesn't have the shape {list(self.shape)} of its card; prepare it again"
                )
            self.parts.append(_borrowed(array.reshape(len(chunk), *self.shape)))
        if len(self.parts) > 1 and sum(part.nbytes for part in self.parts) <= SMALL_COLUMN:
            self.parts = [torch.cat(self.parts)]
        self.starts = np.cumsum([0] + [len(part) for part in self.parts])

    def take(self, rows: Tensor) -> Tensor:
        """Rows [B] as stored; a copy."""
        if len(self.parts) == 1:
            return self.parts[0].index_select(0, rows)
        out = torch.empty((len(rows), *self.shape), dtype=self.parts[0].dtype if self.parts else torch.float32)
        owner = torch.from_numpy(np.searchsorted(self.starts, rows.numpy(), side="right") - 1)
        for number in owner.unique().tolist():
            here = (owner == number).nonzero()[:, 0]
            out[here] = self.parts[number].index_select(0, rows[here] - int(self.starts[number]))
        return out


def _borrowed(array: np.ndarray) -> Tensor:
    """A tensor over read-only memory; it is read by copying rows out, never written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a prepared folder.

    Raises:
        DataError: no prepared data there.
    """
    if not (folder / CARD).exists():
        raise DataError(f"{folder} holds no prepared data; make some with mstdistill prepare TASK, or set data.dir")
    try:
        card = json.loads((folder / CARD).read_text())
        assert isinstance(card["splits"], dict)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{folder} holds damaged data ({first_line(error)}); prepare them again") from None
    return dict(card)
