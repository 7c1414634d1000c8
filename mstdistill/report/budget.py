"""When a page may be renewed: now and then, and for a small part of the time that passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Least seconds between two pages, and before the first one.
LEAST_SECONDS = 3.0
# Largest part of the time that pages take.
SHARE = 0.01


class Budget:
    """The time that pages may take.

    Args:
        expected: seconds that the first page is likely to take.
        clock: in seconds.

    Attributes:
        spent: seconds that pages took.
    """

    def __init__(self, expected: float = 0.02, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.begun, self.spent = clock, clock(), 0.0
        self.next = self.begun + max(LEAST_SECONDS, expected / SHARE)
        self._drawing: float | None = None

    def due(self) -> bool:
        """Whether a page may be drawn; costs next to nothing."""
        return self.clock() >= self.next

    def taken(self) -> float:
        """Seconds that pages took, with the one that is being drawn."""
        return self.spent + (self.clock() - self._drawing if self._drawing is not None else 0.0)

    def affords(self, seconds: float) -> bool:
        """Whether so many more, in a page that is being drawn, stay within the share."""
        return self.taken() + seconds <= SHARE * (self.clock() - self.begun)

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Around the drawing of a page. The next one waits until a page as dear as this one stays within the share."""
        start = self._drawing = self.clock()
        try:
            yield
        finally:
            self._drawing = None
            now = self.clock()
            self.spent += now - start
            self.next = max(now + LEAST_SECONDS, self.begun + (self.spent + now - start) / SHARE)
