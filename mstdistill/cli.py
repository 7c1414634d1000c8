"""The command line: all commands, in the order of its help; errors as one line, with their exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import typer

from .commands.check import check
from .commands.checkpoint import import_checkpoint
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.logits import logits
from .commands.pages import demo, report, watch
from .commands.plan import plan
from .commands.prepare import PrepareCommand, prepare
from .commands.push import push
from .commands.reproduce import reproduce
from .commands.taps import taps
from .commands.tasks import tasks
from .commands.train import train
from .errors import LostProcess, MstdistillError
from .settings import commands, complete

HELP = """Cross-modal knowledge distillation with a mixture of specialised teachers.

Examples:

  mstdistill train av-digits                        both comparisons, in minutes, no download

  mstdistill train av-digits target=audio seed=3    the other direction, another seed

  mstdistill train my-recipe.yaml distill.epochs=20 --out runs/mine

  mstdistill prepare av-mnist --mnist DIR --fsdd DIR

  accelerate launch -m mstdistill train av-mnist    on several GPUs
"""

app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  rich_markup_mode="rich")  # fmt: skip


# prepare takes each task's own options
_PREPARE = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
_BEFORE: tuple[Callable[..., None], ...] = (train, plan, evaluate, logits)
_AFTER: tuple[Callable[..., None], ...] = (reproduce, check, tasks, taps, export, push)
_LAST: tuple[Callable[..., None], ...] = (report, watch, demo, commands.settings, commands.new, commands.completion)

for command in _BEFORE:
    app.command()(command)
app.command(cls=PrepareCommand, context_settings=_PREPARE)(prepare)
for command in _AFTER:
    app.command()(command)
app.command("import")(import_checkpoint)
for command in _LAST:
    app.command()(command)


def main() -> None:
    """Entry point: one line for a user's mistake, exit code 2; 130 after Ctrl-C, 0 where a scheduler asked for the
    stop, 75 where another process was lost."""
    if complete.ASKED in os.environ:
        complete.prepare_answer()
    try:
        app()
    except LostProcess as error:
        _complain(str(error), here=not error.told)
        # what is left of the group waits for the lost one
        os._exit(error.exit_code)
    except MstdistillError as error:
        _complain(str(error))
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        _complain("stopped; the last checkpoint is kept, the same command continues it")
        raise SystemExit(130) from None


def _complain(message: str, here: bool | None = None) -> None:
    """Tell people: the first process does, where nobody else was chosen."""
    if here if here is not None else int(os.environ.get("RANK", "0")) == 0:
        print(f"mstdistill: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
