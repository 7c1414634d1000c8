"""The page that a run leaves, drawn by the run itself: nothing of the run is different afterwards, and nothing is lost
where it can't be drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .. import ranks
from ..engine.seeding import random_state, restore_random_state
from ..errors import Interrupted, first_line
from ..experiment import Experiment
from .known import Known
from .live import LivePage


def leave_page(experiment: Experiment, live: LivePage, known: Known) -> None:
    """Draw a finished run's page in the first process and say where it is, or that it can't be drawn.

    Args:
        live: what the run had until now, with the time that pages may take.
        known: figures of the final table's networks.

    Raises:
        Interrupted: asked to stop meanwhile.
    """
    try:
        with live.budget.spending(), _as_found(experiment), ranks.alone():
            from .run_page import write_run_page

            path = write_run_page(experiment, experiment.student, known, live.budget)
        experiment.screen.say(f"page: {path}")
    except Interrupted:
        raise
    except Exception as error:  # of other people's networks, fonts, disks: the run is finished and whole
        again = "" if experiment.task.name == "custom" else f"; mstdistill report {experiment.folder} tries again"
        experiment.screen.say(f"warning: the run's page can't be drawn ({first_line(error)}){again}")
        live.close("Finished; the whole page couldn't be drawn")


@contextmanager
def _as_found(experiment: Experiment) -> Iterator[None]:
    """Within the block networks may be frozen and numbers drawn; afterwards that is undone."""
    networks = [experiment.student, *(teacher.module for teacher in experiment.teachers)]
    learns = [(p, p.requires_grad) for network in networks for p in network.parameters()]
    training = [(module, module.training) for network in networks for module in network.modules()]
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)
        for parameter, learned in learns:
            parameter.requires_grad_(learned)
        for module, trained in training:
            module.training = trained
