"""Arrow shards of a prepared split: one record batch a file, in the layout that `datasets.load_from_disk` opens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...files import saving, write_text
from .plan import Column


@dataclass
class ShardFacts:
    """What is known of a finished shard."""

    rows: int
    bytes: int
    digest: str
    per_class: dict[str, int]
    statistics: dict[str, Any]
    constant: dict[str, int]
    broken: list[list[str]] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)


@dataclass
class Statistics:
    """Least, greatest, sum and sum of squares of a column's values, per channel where it has channels."""

    low: list[float]
    high: list[float]
    total: list[float]
    squares: list[float]
    count: int

    @classmethod
    def of(cls, values: np.ndarray, axis: int | None) -> Statistics:
        """Of an array [N, ...]; `axis` counts within an instance."""
        kept = tuple(i for i in range(values.ndim) if axis is None or i != axis + 1)
        wide = values.dtype if np.issubdtype(values.dtype, np.integer) else np.dtype(np.float64)

        def listed(x: np.ndarray) -> list[float]:
            return [float(v) for v in np.atleast_1d(x)]

        total, squares = np.zeros(1), np.zeros(1)
        for row in values:  # an instance at a time: a shard of bytes would be eight times as large in float64
            axes = tuple(i - 1 for i in kept if i)
            real = row.astype(np.float64)
            total = total + real.sum(axis=axes)
            squares = squares + np.square(real).sum(axis=axes)
        low, high = values.min(axis=kept).astype(wide), values.max(axis=kept).astype(wide)
        channels = np.atleast_1d(low).size
        return cls(listed(low), listed(high), listed(total), listed(squares), values.size // channels)

    @classmethod
    def merged(cls, parts: Sequence[Statistics]) -> Statistics:
        """Of all shards together."""
        return cls(
            [min(v) for v in zip(*(p.low for p in parts), strict=True)],
            [max(v) for v in zip(*(p.high for p in parts), strict=True)],
            [sum(v) for v in zip(*(p.total for p in parts), strict=True)],
            [sum(v) for v in zip(*(p.squares for p in parts), strict=True)],
            sum(p.count for p in parts),
        )

    def summary(self) -> dict[str, list[float]]:
        """Per channel: min, max, mean, standard deviation."""
        mean = [t / max(self.count, 1) for t in self.total]
        spread = [max(s / max(self.count, 1) - m * m, 0.0) ** 0.5 for s, m in zip(self.squares, mean, strict=True)]
        return {"min": self.low, "max": self.high, "mean": mean, "std": spread}


def write_shard(
    path: Path, columns: Mapping[str, Column], rows: Sequence[Mapping[str, Any]],
    names: Sequence[tuple[str, int | None, int]],
) -> ShardFacts:  # fmt: skip
    """Write rows as one Arrow file, atomically.

    Args:
        rows: arrays by column.
        names: key, label (None: a column of the rows) and publisher's part of each row.
    """
    import pyarrow as pa

    arrays: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        stacked = np.empty((len(rows), *column.shape), dtype=column.dtype)
        for i, row in enumerate(rows):
            stacked[i] = row[name]
        arrays[name] = stacked
    if "label" not in columns:
        arrays["label"] = np.array([label for _, label, _ in names], dtype=np.int64)
    arrays["part"] = np.array([part for _, _, part in names], dtype=np.int8)
    schema = _features(columns).arrow_schema
    filled = {name: _arrow(values) for name, values in arrays.items()}
    filled["key"] = pa.array([key for key, _, _ in names], type=pa.string())
    table = pa.table({field.name: filled[field.name] for field in schema}).cast(schema)
    with saving(path) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(table, max_chunksize=max(len(rows), 1))
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape} {arrays[name].dtype};".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data if len(rows) else b"")
    label = arrays["label"]
    if label.ndim == 2:  # of several classes at once: who has each
        classes: Any = enumerate((label == 1).sum(axis=0))
    else:
        classes = zip(*np.unique(label, return_counts=True), strict=True) if label.size else ()
    return ShardFacts(
        rows=len(rows),
        bytes=path.stat().st_size,
        digest=digest.hexdigest(),
        per_class={str(k): int(n) for k, n in classes},
        statistics={name: vars(Statistics.of(arrays[name], c.axis)) for name, c in columns.items() if len(rows)},
        constant={name: _constant(arrays[name]) for name in columns if name != "label"},
    )


def _constant(values: np.ndarray) -> int:
    """Instances whose values are all the same: a black frame, silence."""
    if not values.size:
        return 0
    flat = values.reshape(len(values), -1)
    return int((flat == flat[:, :1]).all(axis=1).sum())


def _arrow(values: np.ndarray) -> Any:
    import pyarrow as pa

    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))


def _features(columns: Mapping[str, Column]) -> Any:
    import datasets

    features = {
        name: datasets.Sequence(datasets.Value(c.dtype), length=int(np.prod(c.shape))) if c.shape
        else datasets.Value(c.dtype)
        for name, c in columns.items()
    }  # fmt: skip
    features.setdefault("label", datasets.Value("int64"))
    return datasets.Features({**features, "part": datasets.Value("int8"), "key": datasets.Value("string")})


def finish_split(folder: Path, columns: Mapping[str, Column], files: Sequence[str], fingerprint: str) -> None:
    """Write what `datasets.load_from_disk` wants beside the shards, as `datasets` itself writes it."""
    import tempfile

    import datasets

    datasets.disable_progress_bars()
    features = _features(columns)
    empty = datasets.Dataset(datasets.table.InMemoryTable(features.arrow_schema.empty_table()))
    with tempfile.TemporaryDirectory() as scratch:
        empty.save_to_disk(scratch, num_shards=1)
        state = json.loads((Path(scratch) / "state.json").read_text())
        info = (Path(scratch) / "dataset_info.json").read_text()
    state["_data_files"] = [{"filename": name} for name in files]
    state["_fingerprint"] = fingerprint[:16]
    write_text(folder / "state.json", json.dumps(state, indent=1))
    write_text(folder / "dataset_info.json", info)
