"""Commands around pages: of a finished run or a suite; servers, to watch one or to try a student in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError


def report(
    folder: Annotated[Path, typer.Argument(help="the folder of a finished run, or of a suite")],
) -> None:
    """Write one self-contained HTML page: curves, routing, masks, agreement, confusions; or a suite's comparison.

    Examples:

      mstdistill report runs/av-digits-image-mst-seed0

      mstdistill report runs/suite-av-digits
    """
    from ..engine.progress import Screen

    if not (folder / "cells").is_dir():
        from .. import refusals

        refusals.unfinished(folder, "summary.json")
        from ..pipeline import load_experiment
        from ..report.run_page import write_run_page
        from ..student import Student

        experiment, _ = load_experiment(folder, Screen(quiet=True))
        student = Student.from_pretrained(folder / "student").to(experiment.accelerator.device)
        path = write_run_page(experiment, student.module)
    else:
        from ..suite.plan import plan, records, saved_suite
        from ..suite.tables import judge

        grid = plan(saved_suite(folder))
        found = records(grid, folder)
        if not found:
            raise ConfigError(
                f"{folder} holds no finished run of this code and data; table.md there is what others left"
            )
        from ..suite.page import write_suite_page

        path = write_suite_page(judge(grid, found), folder)
    Screen().say(f"page: {path}")


def watch(
    folder: Annotated[Path, typer.Argument(help="the folder of a run, or of a suite, that goes on or is finished")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="of this machine; 0: any that is free")] = 8730,
) -> None:
    """Serve a folder's page to this machine's browsers, and nothing else of it, until Ctrl-C.

    Examples:

      mstdistill watch runs/av-digits-image-mst-seed0

      ssh -L 8730:127.0.0.1:8730 gpu-machine mstdistill watch runs/big      then open http://127.0.0.1:8730 here
    """
    from ..report.watch import serve

    serve(folder, port, typer.echo)


def demo(
    run: Annotated[Path, typer.Argument(help="the folder of a finished run")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="of this machine; 0: any that is free")] = 8731,
) -> None:
    """Try a run's student in this machine's browsers, beside the student alone and the teachers, until Ctrl-C.

    Draw or drop a picture, record or drop a sound, type a text, as the networks see it. Nothing
    leaves the machine and nothing is kept. Needs the extra: pip install 'mstdistill[demo]'

    Example: mstdistill demo runs/av-digits-image-mst-seed0
    """
    from .. import refusals

    refusals.demo(run)
    from ..demo.serve import listener, serve

    with listener(port) as door:
        serve(run, door, typer.echo)
