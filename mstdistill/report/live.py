"""The page of a run while it goes on: where it is, the time left of its stage, the curves so far. It draws nothing at
random, asks no network anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import ranks
from ..config import Recipe
from ..data.task import Task
from ..data.view import modality_of
from ..errors import first_line
from ..files import write_text
from . import budget
from .curves import add_curves, finished_histories
from .page import PAGE, Page, title_of

# Seconds after which a browser asks for the page anew.
RELOAD_SECONDS = 5


class LivePage:
    """Told where a run stands after every step; renews the run's page when that is due.

    Args:
        folder: of the run.
        about: a line below the title.
        warn: told once if pages can't be drawn; the run goes on without.
    """

    def __init__(self, folder: Path, task: str, target: str, about: str, warn: Callable[[str], None]) -> None:
        self.folder, self.title, self.about, self.warn = folder, title_of(task, target), about, warn
        self.budget = budget.Budget()
        self.histories: dict[str, Sequence[Mapping[str, Any]]] = {}
        self.stage, self.done, self.total, self.epochs = "", 0, 0, 0
        self._begun, self._start = 0.0, 0  # of the stage in this process: when, and at which step
        self._well, self._drawn = True, _reloads(folder / PAGE)

    def told(self, stage: str, done: int, total: int, epochs: int, history: Sequence[Mapping[str, Any]]) -> None:
        """The run stands here.

        Args:
            done, total: steps of the stage.
            epochs: of the stage in all.
            history: figures of each finished epoch.
        """
        if stage != self.stage:
            self.stage, self._begun, self._start = stage, time.monotonic(), done
            self.histories = {**finished_histories(self.folder), **self.histories}
        self.done, self.total, self.epochs, self.histories[stage] = done, total, epochs, history
        if self.budget.due():
            self._renew(self._where(), RELOAD_SECONDS)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Within the block the run goes on; where it fails, its page says so and reloads no longer."""
        try:
            yield
        except BaseException as error:
            self.close(f"Ended: {first_line(error)}")
            raise

    def close(self, why: str) -> None:
        """The run goes on no longer; a page that reloads, drawn by this start of the run or an earlier one, says why
        and stays as it is."""
        if self._drawn:
            self._renew(why, 0)

    def _where(self) -> str:
        said = f"Running: {self.stage}, epoch {len(self.histories[self.stage]) + 1} of {self.epochs}"
        if self.done >= self.total:
            return f"Running: {self.stage} is done"
        steps = self.done - self._start
        if steps <= 0:
            return said
        left = (time.monotonic() - self._begun) / steps * (self.total - self.done)
        return f"{said}, about {_words(left)} left of this stage"

    def _renew(self, where: str, reload: int) -> None:
        if not self._well:
            return
        with self.budget.spending():
            try:
                write_text(self.folder / PAGE, self._page(where, reload).render())
                self._drawn = True
            except Exception as error:  # a full disk, an odd figure: not worth a run
                self._well = False
                self.warn(f"warning: the run's page can't be renewed ({first_line(error)}); the run goes on")

    def _page(self, where: str, reload: int) -> Page:
        page = Page(self.title, self.about, reload)
        going = "This page is renewed while the run goes on." if reload else ""
        page.lead(f"{where}.", f"{time.strftime('%Y-%m-%d %H:%M:%S')}. {going}")
        page.progress(self.done, self.total, f"{self.stage}: steps")
        # the stage that is at work first
        histories = {self.stage: self.histories[self.stage], **self.histories} if self.stage else {}
        add_curves(page, histories, numbers=False)
        return page


def live_page(
    recipe: Recipe, task: Task, target: str | None, folder: Path, accelerator: Any, warn: Callable[[str], None]
) -> LivePage | None:
    """The page that the first process renews, where the recipe wants one.

    Args:
        target: the student's view; None: the recipe's target as it is.
    """
    if not recipe.run.page or ranks.rank() != 0:
        return None
    about = (f"method {recipe.method}, seed {recipe.seed}; {accelerator.num_processes} process(es) on "
             f"{accelerator.device.type}; {folder}")  # fmt: skip
    return LivePage(folder, task.name, modality_of(target or recipe.target), about, warn)


def _reloads(path: Path) -> bool:
    """Whether a run that was killed left its page there."""
    try:
        return f'http-equiv="refresh" content="{RELOAD_SECONDS}"' in path.read_text()[:1000]
    except (OSError, ValueError):
        return False


def _words(seconds: float) -> str:
    """A time that is left, as coarse as it is known."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
