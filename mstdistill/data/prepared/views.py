"""Views: one modality through one processor, computed once and kept on disk as prepared data.

Pictures, sounds and texts differ from model to model by their processors only. So what a run's networks see is prepared
beforehand, one column a view, and everything after that reads tensors. A view is called `modality@digest of the
processor`; models with equal processors share it. A modality that needs no processor keeps its name.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ... import ranks
from ...errors import ConfigError, DataError
from ..decode.picture import pixels
from ..decode.processors import Port, Processing
from ..place import home
from ..source import Source
from ..split import Split
from ..task import Form, Task
from .build import build
from .cut import own_splits, publisher_splits
from .plan import Column, Item, Plan, Watcher
from .store import HAS, PreparedSplit, read_card

VERSION = 2
# Fewer instances are prepared before another process has started.
_FEW = 512


class RawSource(Source, Protocol):
    """A source whose rows are raw: pictures, sounds, texts, arrays; `sources.own.OwnData` is one.

    Attributes:
        task: with classes.
        kinds: modality -> "image", "audio", "text" or "array".
        items: every labelled instance, with its class and part.
        parted: whether the data come with splits of their own.
        streaming: whether rows come one after the other.
        lacking: whether instances may lack a modality.
        rows: hands out an instance's values; travels to other processes.
        numbers: split -> labels of its rows.
        naming: from prepared rows' keys to what people call instances; None: nothing but their place names them.
    """

    task: Task
    items: list[Item]
    parted: bool
    streaming: bool
    lacking: bool
    rows: Any
    numbers: dict[str, np.ndarray]

    @property
    def kinds(self) -> Mapping[str, str]: ...

    @property
    def naming(self) -> Callable[[Sequence[str]], Sequence[str | None]] | None: ...

    def first(self, modality: str) -> Any:
        """The first readable value of a modality."""
        ...


@dataclass(frozen=True)
class View:
    """A modality as some networks see it.

    Attributes:
        name: of the column.
        processing: the processor; None for plain pixels and arrays.
        port: how a model takes it.
        column: shape and type.
    """

    name: str
    modality: str
    kind: str
    processing: Processing | None
    port: Port
    column: Column


def make_view(data: RawSource, modality: str, processing: Processing | None, owner: str) -> View:
    """A modality through a processor, or, for pictures and arrays, as it is.

    Raises:
        ConfigError: texts and sounds need a processor.
        DataError: the first instances can't be read.
    """
    kind = data.kinds[modality]
    if processing is not None:
        port = processing.port()
        dtype = "int32" if kind == "text" else "float32"
        name = f"{modality}@{processing.digest()}"
        return View(name, modality, kind, processing, port, Column(port.shape, dtype))
    if kind in ("text", "audio"):
        raise ConfigError(f"{owner}: {modality} is {kind}, which a backbone can't take; use a model with a processor "
                          "(hf: ...), or prepare arrays yourself")  # fmt: skip
    first = data.first(modality)
    array = pixels(first) if kind == "image" else first
    column = Column(array.shape, str(array.dtype))
    return View(modality, modality, kind, None, Port("array", ("main",), array.shape), column)


def form_of(view: View) -> Form:
    """How a view lies in its tensor."""
    rows, time = view.port.names if view.port.stacked else (), -1
    if view.kind == "audio" and view.processing is not None and len(view.port.shape) > 1 and not rows:
        tool = view.processing.tool  # some put the bins first, some last
        bins = getattr(tool, "num_mel_bins", None) or getattr(tool, "feature_size", None)
        time = -2 if bins == view.port.shape[-1] != view.port.shape[-2] else -1
    return Form(view.kind, time, rows)


@dataclass
class _Reading:
    """From an instance's place to its views; travels to other processes."""

    rows: Any
    views: tuple[View, ...]
    lacking: bool = False
    labels: Mapping[str, np.ndarray] | None = None

    def __call__(self, source: tuple[str, int]) -> dict[str, np.ndarray]:
        row: dict[str, np.ndarray] = {}
        if self.labels is not None:
            row["label"] = self.labels[source[0]][source[1]]
        missing = [view for view in self.views if self.lacking and self.rows.absent(source, view.modality)]
        if len(missing) == len(self.views):
            raise DataError(f"it holds none of {', '.join(sorted({view.modality for view in missing}))}")
        for view in self.views if self.lacking else ():
            row[HAS + view.name] = np.asarray(view not in missing, dtype=np.uint8)
        for view in missing:
            row[view.name] = np.zeros(view.column.shape, dtype=view.column.dtype)
        for view in self.views:
            if view in missing:
                continue
            raw = self.rows.decoded(source, view.modality)
            if view.processing is not None:
                row[view.name] = view.processing(raw)
            elif view.kind == "image":
                row[view.name] = pixels(raw.convert("L" if view.column.shape[0] == 1 else "RGB"))
            else:
                row[view.name] = raw
            shape = row[view.name].shape
            if shape != view.column.shape:
                split, position = source
                raise DataError(f"{split}/{position}: {view.modality} has shape {list(shape)} where "
                                f"the first has {list(view.column.shape)}: make them all of one size")  # fmt: skip
        return row


def open_views(
    data: RawSource, views: Sequence[View], *, group: int, limit: int | None, split: str, screen: Watcher,
    max_broken: float = 0.02, indices: str | None = None,
) -> dict[str, Split]:  # fmt: skip
    """Train, validation and test instances as tensors; prepared on first use.

    Raises:
        DataError: more than this share of broken instances, too little room on the disk, or too few instances.
        ConfigError: a table of seed groups for data with splits of their own.
    """
    if indices is not None and data.parted:
        raise ConfigError("data.indices: these data have splits of their own; leave it out")
    views = sorted({view.name: view for view in views}.values(), key=lambda view: view.name)
    columns = _columns(views, data.lacking)
    identity = json.dumps([VERSION, data.fingerprint, {name: asdict(c) for name, c in columns.items()}])
    folder = home() / "views" / hashlib.sha256(identity.encode()).hexdigest()[:20]
    if ranks.local_rank() == 0 and not (folder / "card.json").exists():
        for note in data.notes:
            screen.say(f"{data.task.title}: {note}")
        _prepare(folder, data, views, screen, max_broken)
    while not (folder / "card.json").exists():  # on another process of this machine; a barrier would time out
        time.sleep(0.5)
    card = read_card(folder)
    broken = card["broken"]["count"]
    if broken:
        screen.say(f"{broken} broken instances are left out: {folder / card['broken']['list']}")
    whole = PreparedSplit(folder, "all", card)
    whole.naming = data.naming
    if data.parted or split == "publisher":
        return publisher_splits(whole, limit)
    return own_splits(whole, group, limit, indices)


def _prepare(folder: Path, data: RawSource, views: Sequence[View], screen: Watcher, max_broken: float) -> None:
    row = sum(int(np.prod(v.column.shape)) * np.dtype(v.column.dtype).itemsize for v in views)
    size = row * len(data.items)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if size > 0.95 * free:
        raise DataError(f"{len(data.items):,} prepared instances take {size / 1e9:.1f} GB and {folder.parent} has "
                        f"{free / 1e9:.1f} GB left; set MSTDISTILL_HOME to a larger disk")  # fmt: skip
    screen.say(f"preparing {', '.join(view.name for view in views)}: {size / 1e9:.2f} GB in {folder}, once")
    for view in views:
        if view.processing is not None:
            screen.say(f"{view.name}: {view.processing.about()}")
    several = data.task.multilabel
    label = {"label": Column((data.task.num_classes,), "int8")} if several else {}
    plan = Plan(
        task=data.task.name,
        version=VERSION,
        columns={**_columns(views, data.lacking), **label},
        items=data.items,
        read=_Reading(data.rows, tuple(views), data.lacking, data.numbers if several else None),
        settings={"data": data.fingerprint},
        card={
            "title": data.task.title,
            "classes": list(data.task.class_names),
            "views": _facts(views),
            **({"multilabel": True} if several else {}),
        },
    )
    workers = 1 if data.streaming or len(data.items) < _FEW else None
    try:
        build(folder, plan, screen, workers, max_broken)
    except DataError as error:
        raise DataError(str(error).replace("--max-broken", "data.max_broken")) from None


def _columns(views: Sequence[View], lacking: bool) -> dict[str, Column]:
    """A column a view; where instances may lack one, another that says which have it."""
    has = {HAS + view.name: Column((), "uint8") for view in views} if lacking else {}
    return {view.name: view.column for view in views} | has


def _facts(views: Sequence[View]) -> Mapping[str, Any]:
    return {
        view.name: {"modality": view.modality, "kind": view.kind,
                    "processor": view.processing.source if view.processing else None}
        for view in views
    }  # fmt: skip
