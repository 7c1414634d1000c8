"""What a person sees while it runs: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import ranks


class Screen:
    """Output for people, on rank 0 only.

    Args:
        quiet: nothing but errors.
    """

    def __init__(self, quiet: bool = False) -> None:
        # what users wrote, class names and paths, is shown as it is
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self.quiet = quiet

    def say(self, text: Any = "") -> None:
        """A line, or anything that rich can show."""
        if not self.quiet and ranks.rank() == 0:
            self.console.print(text)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Progress of a long task in `total` steps."""
        if self.quiet or ranks.rank() != 0:
            yield Bar(title, total, done)
        elif self.console.is_terminal:
            columns = (
                TextColumn("{task.description:<12}", markup=False), BarColumn(), MofNCompleteColumn(),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
            )  # fmt: skip
            with Progress(*columns, console=self.console, transient=True) as progress:
                number = progress.add_task(title, total=total, completed=done, note="")
                yield _LiveBar(title, total, done, progress, number)
        else:
            yield _LineBar(title, total, done, self.console)


class Bar:
    """A task's progress; this one is silent."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.done, self.note = title, total, done, ""

    def advance(self) -> None:
        """One step further."""
        self.done += 1

    def remark(self, note: str) -> None:
        """What stands beside the bar from now on."""
        self.note = note


class _LiveBar(Bar):
    def __init__(self, title: str, total: int, done: int, progress: Progress, number: Any) -> None:
        super().__init__(title, total, done)
        self.progress, self.number = progress, number

    def advance(self) -> None:
        super().advance()
        self.progress.update(self.number, completed=self.done, note=self.note)


class _LineBar(Bar):
    """A line every fifteen seconds, for logs."""

    def __init__(self, title: str, total: int, done: int, console: Console) -> None:
        super().__init__(title, total, done)
        self.console, self.begun, self.start, self.spoken = console, done, time.monotonic(), time.monotonic()

    def advance(self) -> None:
        super().advance()
        now = time.monotonic()
        if now - self.spoken >= 15 and self.done < self.total:
            self.spoken = now
            left = (now - self.start) / (self.done - self.begun) * (self.total - self.done)
            self.console.print(f"{self.title}: {self.done}/{self.total}, {left:.0f} s left  {self.note}")
