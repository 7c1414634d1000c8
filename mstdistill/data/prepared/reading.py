"""Instances read on all cores, in order, a bounded number ahead of who takes them."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any

from ...errors import DataError, MstdistillError, first_line
from .plan import Item, Row

MOST_TOGETHER = 32


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Reading:
    """Results of `read` for items, in order, from a pool of processes or from this one.

    Args:
        ahead: at most so many results wait to be taken.
    """

    def __init__(self, read: Callable[[Any], Row], items: Sequence[Item], workers: int, ahead: int) -> None:
        self.read, self.items = read, items
        self.workers = workers if len(items) >= 2 * workers else 1
        # small rows travel together: sending one costs a millisecond
        self.chunk = max(1, min(MOST_TOGETHER, ahead // (4 * workers), len(items) // (4 * workers)))
        self.tasks = max(2, min(4 * workers, ahead // self.chunk))
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Iterator[Row | DataError]:
        if self.workers <= 1:
            return (_attempt(self.read, item.source) for item in self.items)
        # not forked: this process may hold threads by now
        self.pool = ProcessPoolExecutor(self.workers, get_context("spawn"), _begin, (self.read,))
        return self._pooled(self.pool)

    def _pooled(self, pool: ProcessPoolExecutor) -> Iterator[Row | DataError]:
        ahead: deque[Future[list[Row | DataError]]] = deque()
        chunks = (self.items[i : i + self.chunk] for i in range(0, len(self.items), self.chunk))
        for items in islice(chunks, self.tasks):
            ahead.append(pool.submit(_attempt_here, [item.source for item in items]))
        while ahead:
            try:
                results = ahead.popleft().result()
            except BrokenProcessPool:
                raise DataError(
                    "a reading process was ended from outside, perhaps for want of memory; the same command goes on, "
                    "with a smaller --workers if it happens again"
                ) from None
            for items in islice(chunks, 1):
                ahead.append(pool.submit(_attempt_here, [item.source for item in items]))
            yield from results

    def __exit__(self, *_: Any) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)


_read_here: Callable[[Any], Row] | None = None


def _begin(read: Callable[[Any], Row]) -> None:
    """In a worker: one thread each, the cores are shared out already; Ctrl-C is the parent's to handle."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    global _read_here
    _read_here = read


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _attempt_here(sources: Sequence[Any]) -> list[Row | DataError]:
    assert _read_here is not None
    return [_attempt(_read_here, source) for source in sources]


def _attempt(read: Callable[[Any], Row], source: Any) -> Row | DataError:
    try:
        return read(source)
    except DataError as error:
        return error
    except MstdistillError:  # a package that is missing, an option: no fault of this row
        raise
    except Exception as error:  # decoders and processors each have kinds of their own
        return DataError(f"can't be read ({type(error).__name__}: {first_line(error)})")
