"""What is to be prepared, and how: columns, items, and who reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """An instance before it is read.

    Attributes:
        key: how a person finds it: a file or an id.
        source: what reading it needs; it travels to another process.
        label: its class; None where the label is read with it.
        part: the publisher's split: 0 train, 1 validation, 2 test, -1 none.
    """

    key: str
    source: Any
    label: int | None = None
    part: int = -1


SOURCES = "_sources"


@dataclass(frozen=True)
class Column:
    """A column of prepared data.

    Attributes:
        shape: of an instance; () for a number.
        dtype: as stored.
        scale: min-max scaling to [0, 1] when read: "global", "channel" (the axis below) or None.
        axis: the channel axis of an instance, for "channel" and for the card's statistics.
    """

    shape: tuple[int, ...]
    dtype: str
    scale: str | None = None
    axis: int | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be prepared, and how.

    Attributes:
        columns: modalities, and `label` where it isn't a number per item.
        items: in the order of the rows.
        read: an item's source to its arrays; may add `_sources`: {file: SHA-256}. Raises DataError for a broken one.
        encode: rows as read to rows as stored, a few at a time in this process; None: they are the same.
        settings: options that change the data: a folder is resumed and reused only with the same ones.
        card: facts for the card.
        order: how the items stand, for the card: seed groups and index files count on it.
        encode_rows: how many rows are encoded together.
        read_bytes: of a row as read, where that is more than as stored: it bounds how many are under way.
    """

    task: str
    version: int
    columns: Mapping[str, Column]
    items: Sequence[Item]
    read: Callable[[Any], Row]
    settings: Mapping[str, Any]
    card: Mapping[str, Any] = field(default_factory=dict)
    order: str = "as the source lists them"
    encode: Callable[[list[Row]], list[Row]] | None = None
    encode_rows: int = 8
    read_bytes: int = 0


class Watcher(Protocol):
    """Who is told how it goes; `mstdistill.engine.progress.Screen` is one."""

    def say(self, text: Any = "") -> None: ...

    def task(self, title: str, total: int, done: int = 0) -> Any: ...
