"""Preparing data of any size: sources are read on all cores, rows go to disk by shards, a killed run goes on.

A task says what its instances are (`Item`), how one is read and, where an encoder is needed, how a few are encoded
together. Rows are written in the items' order in Arrow shards under `<folder>.partial`; each finished shard has its
facts beside it, so that a second run takes up where the first one ended and the result is the same to the byte. Memory
holds one shard and the rows under way, however large the source.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...errors import DataError, MstdistillError, first_line
from ...files import locked, saving, write_text
from ..instance import complaint
from .plan import SOURCES, Item, Plan, Row, Watcher
from .reading import Reading, cores
from .shards import ShardFacts, Statistics, finish_split, write_shard
from .store import CARD

SHARD_BYTES = 128_000_000
SHARD_ROWS = (16, 4096)
AHEAD_BYTES = 500_000_000  # of rows read and not yet written
BROKEN = "broken.json"
_TOOLS = ("datasets", "numpy", "torch", "torchaudio", "transformers", "av", "opencv-python-headless", "h5py", "pillow",
          "nltk", "emoji", "ftfy", "timm")  # fmt: skip


def build(
    folder: Path, plan: Plan, screen: Watcher, workers: int | None = None, max_broken: float = 0.02
) -> Path:  # fmt: skip
    """Prepare a data set in a folder, or go on with it.

    Args:
        workers: processes that read; None: one a core; 1: this process.
        max_broken: largest share of instances that may be unreadable; they are left out and listed in `broken.json`.

    Raises:
        DataError: nothing to prepare, too many broken instances, or the folder holds other data.
        CheckpointError: the disk is full; what was done is kept.
    """
    if not plan.items:
        raise DataError(f"{plan.task}: no instances found; look at the folder given as --source")
    with locked(folder, lambda: screen.say(f"another process prepares {folder}; waiting for it")):
        return _build(folder, plan, screen, workers, max_broken)


def _build(folder: Path, plan: Plan, screen: Watcher, workers: int | None, max_broken: float) -> Path:
    binding = _binding(plan)
    if _ready(folder, plan, binding):
        screen.say(f"{folder} is prepared already, with the same settings")
        return folder
    partial = folder.parent / f"{folder.name}.partial"
    if not (partial / CARD).exists():
        _bind(partial, binding)
        started = time.monotonic()
        fresh = _Building(partial, plan, screen, max_broken).run(workers or cores())
        _seal(partial, plan, binding, max_broken)
        _log(folder, plan, fresh, time.monotonic() - started, workers or cores(), screen)
    (partial / "binding.json").unlink(missing_ok=True)
    shutil.rmtree(partial / "shards", ignore_errors=True)
    for left in partial.rglob(".*.tmp"):  # of a process that was killed while it wrote
        left.unlink(missing_ok=True)
    partial.rename(folder)
    return folder


def _binding(plan: Plan) -> dict[str, Any]:
    """What a folder is bound to: settings, columns, and the items by name."""
    digest = hashlib.sha256()
    for item in plan.items:
        digest.update(f"{item.key}\t{item.label}\t{item.part}\n".encode())
    columns = {name: asdict(column) for name, column in plan.columns.items()}
    content = {"task": plan.task, "version": plan.version, "settings": dict(plan.settings), "columns": columns,
               "sources": plan.card.get("sources"), "items": digest.hexdigest()}  # fmt: skip
    return dict(json.loads(json.dumps(content)))


def _ready(folder: Path, plan: Plan, binding: Mapping[str, Any]) -> bool:
    if not folder.exists() or not any(folder.iterdir()):
        return False
    try:
        card = json.loads((folder / CARD).read_text())
        before = card["binding"]
    except (OSError, ValueError, KeyError):
        raise DataError(f"{folder} holds something else already; choose another --out") from None
    if before != binding:
        raise DataError(f"{folder} holds data prepared otherwise ({_differ(before, binding)}); choose another --out, "
                        "or delete it")  # fmt: skip
    if "order" not in card:  # prepared before cards named it: the same items in the same places stand in this order
        write_text(folder / CARD, json.dumps({**card, "order": plan.order}, indent=1))
    return True


def _bind(partial: Path, binding: Mapping[str, Any]) -> None:
    path = partial / "binding.json"
    if path.exists():
        before = json.loads(path.read_text())
        if before != binding:
            raise DataError(
                f"{partial} was begun with other settings or files ({_differ(before, binding)}); go on with the same "
                "ones, or delete it to start anew"
            )
        return
    (partial / "shards").mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(binding))


def _differ(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    settings = {"settings", "columns"}
    names = [key for key in now if key not in settings and before.get(key) != now[key]]
    old, new = before.get("settings", {}), now["settings"]
    names += [f"--{key.replace('_', '-')}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return ", ".join(names or ["columns"])


class _Building:
    """The shards of a plan, those that are missing."""

    def __init__(self, partial: Path, plan: Plan, screen: Watcher, max_broken: float) -> None:
        self.partial, self.plan, self.screen, self.max_broken = partial, plan, screen, max_broken
        row = sum(int(np.prod(c.shape)) * np.dtype(c.dtype).itemsize for c in plan.columns.values())
        self.ahead = max(2, AHEAD_BYTES // max(row, plan.read_bytes, 1))
        self.rows = int(np.clip(SHARD_BYTES // max(row, 1), *SHARD_ROWS))
        self.count = -(-len(plan.items) // self.rows)

    def run(self, workers: int) -> int:
        """Write every missing shard; returns how many items were read for it."""
        found = {number: facts for number in range(self.count) if (facts := self._done(number)) is not None}
        missing = [number for number in range(self.count) if number not in found]
        done = sum(len(self._items(number)) for number in found)
        if done:
            self.screen.say(f"{self.plan.task}: goes on after {done:,} of {len(self.plan.items):,} instances")
        wanted = [item for number in missing for item in self._items(number)]
        broken = sum(len(facts.broken) for facts in found.values())
        with (
            self.screen.task(f"prepare {self.plan.task}", len(self.plan.items), done) as bar,
            Reading(self.plan.read, wanted, workers, self.ahead) as results,
        ):
            for number in missing:
                facts = self._shard(number, results, bar)
                broken += len(facts.broken)
                bar.remark(f"{broken} broken" if broken else "")
                self._check_broken(broken)
        return len(wanted)

    def _items(self, number: int) -> Sequence[Item]:
        return self.plan.items[number * self.rows : (number + 1) * self.rows]

    def _paths(self, number: int) -> tuple[Path, Path]:
        name = f"data-{number:05d}-of-{self.count:05d}.arrow"
        return self.partial / "all" / name, self.partial / "shards" / f"{number:05d}.json"

    def _done(self, number: int) -> ShardFacts | None:
        data, facts = self._paths(number)
        try:
            found = ShardFacts(**json.loads(facts.read_text()))
            # after too many broken files they may have been mended
            again = bool(found.broken) and (self.partial / BROKEN).exists()
            return found if data.stat().st_size == found.bytes and not again else None
        except (OSError, ValueError, TypeError):
            return None

    def _shard(self, number: int, results: Iterator[Row | DataError], bar: Any) -> ShardFacts:
        items, kept, broken = self._items(number), [], []
        rows: list[Row] = []
        waiting: list[tuple[Item, Row]] = []

        def flush() -> None:
            for (item, _), row in zip(waiting, self._encoded([row for _, row in waiting]), strict=True):
                wrong = str(row) if isinstance(row, DataError) else self._wrong(row)
                if wrong:
                    broken.append([item.key, wrong])
                else:
                    rows.append(cast(Row, row))
                    kept.append(item)
                bar.advance()
            waiting.clear()

        for item, result in zip(items, islice(results, len(items)), strict=True):
            if isinstance(result, DataError):
                flush()  # rows stay in order
                broken.append([item.key, str(result)])
                bar.advance()
            else:
                waiting.append((item, result))
                if len(waiting) == self.plan.encode_rows:
                    flush()
        flush()
        data, path = self._paths(number)
        data.parent.mkdir(exist_ok=True)
        facts = write_shard(data, self.plan.columns, rows, [(i.key, i.label, i.part) for i in kept])
        facts.broken, facts.sources = broken, {k: v for row in rows for k, v in row.get(SOURCES, {}).items()}
        write_text(path, json.dumps(asdict(facts)))
        return facts

    def _encoded(self, rows: list[Row]) -> Sequence[Row | DataError]:
        """Rows as stored; where some together fail, each alone, so that one bad row doesn't take the others along."""
        encode = self.plan.encode
        if encode is None:
            return rows
        try:
            return encode(rows)
        except MstdistillError:
            raise
        except Exception as error:  # an encoder's own kinds
            if len(rows) > 1:
                return [self._encoded([row])[0] for row in rows]
            return [DataError(f"can't be encoded ({type(error).__name__}: {first_line(error)})")]

    def _wrong(self, row: Row) -> str:
        """What is wrong with a row, in words; else nothing."""
        found = (complaint(name, row[name], column.shape, column.dtype) for name, column in self.plan.columns.items())
        return next(filter(None, found), "")

    def _check_broken(self, broken: int) -> None:
        total = len(self.plan.items)
        if broken <= self.max_broken * total:
            return
        listed = _gather_broken(self.partial)
        write_text(self.partial / BROKEN, json.dumps(listed, indent=1))
        key, why = listed[0]
        raise DataError(
            f"{self.plan.task}: {broken} of {total} instances can't be read, more than --max-broken {self.max_broken}; "
            f"the first: {key}: {why}; all are in {self.partial / BROKEN}"
        )


def _gather_broken(partial: Path) -> list[list[str]]:
    return [entry for path in sorted(partial.glob("shards/*.json")) for entry in json.loads(path.read_text())["broken"]]


def _seal(partial: Path, plan: Plan, binding: Mapping[str, Any], max_broken: float) -> None:
    """Everything beside the shards: what `datasets` needs to open them, sources, broken instances, the card."""
    facts = [ShardFacts(**json.loads(path.read_text())) for path in sorted(partial.glob("shards/*.json"))]
    rows = sum(f.rows for f in facts)
    if rows == 0:
        raise DataError(f"{plan.task}: no instance could be read; see {partial / 'shards'}")
    fingerprint = hashlib.sha256("".join(f.digest for f in facts).encode()).hexdigest()
    broken = [entry for f in facts for entry in f.broken]
    write_text(partial / BROKEN, json.dumps(broken, indent=1))
    with saving(partial / "sources.tsv") as temporary, temporary.open("w") as out:
        out.write("file\tsha256\n")
        for f in facts:
            out.writelines(f"{name}\t{digest}\n" for name, digest in f.sources.items())
    finish_split(partial / "all", plan.columns, [f"data-{i:05d}-of-{len(facts):05d}.arrow" for i in range(len(facts))],
                 fingerprint)  # fmt: skip
    per_class: dict[str, int] = {}
    for f in facts:
        for label, count in f.per_class.items():
            per_class[label] = per_class.get(label, 0) + count
    modalities: dict[str, Any] = {"label": {"shape": [], "dtype": "int64"}, "part": {"shape": [], "dtype": "int8"}}
    for name, column in plan.columns.items():
        statistics = Statistics.merged([Statistics(**f.statistics[name]) for f in facts if f.rows])
        modalities[name] = {"shape": list(column.shape), "dtype": column.dtype, "statistics": statistics.summary()}
        if column.scale:
            modalities[name]["scale"] = {"low": statistics.low, "high": statistics.high, "axis": column.axis}
    card = {
        "task": plan.task,
        "version": plan.version,
        **plan.card,
        "order": plan.order,
        "settings": dict(plan.settings),
        "splits": {"all": {"rows": rows, "fingerprint": fingerprint, "per_class": dict(sorted(
            per_class.items(), key=lambda entry: int(entry[0])))}},
        "modalities": modalities,
        "broken": {"count": len(broken), "largest_share": max_broken, "list": BROKEN},
        "constant": {name: sum(f.constant.get(name, 0) for f in facts) for name in plan.columns},
        "sources": {**dict(plan.card.get("sources", {})), "files": "sources.tsv"},
        "tools": _versions(),
        "binding": dict(binding),
    }  # fmt: skip
    write_text(partial / CARD, json.dumps(card, indent=1))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _log(folder: Path, plan: Plan, read: int, seconds: float, workers: int, screen: Watcher) -> None:
    """How long it took, beside the folder: the folder's own files are the same after every run."""
    facts = {"task": plan.task, "instances": read, "seconds": round(seconds, 2),
             "instances_per_second": round(read / max(seconds, 1e-9), 2), "workers": workers}  # fmt: skip
    path = folder.parent / f"{folder.name}.prepare.json"
    write_text(path, json.dumps(facts, indent=1))
    screen.say(f"read {read:,} instances in {seconds:.1f} s, {facts['instances_per_second']:,} a second  ({path})")
