"""`mstdistill reproduce`: a comparison of many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..settings import complete


def reproduce(
    suite: Annotated[str, typer.Argument(help="a shipped suite or a YAML file", autocompletion=complete.suites)],
    overrides: Annotated[list[str] | None, typer.Argument(help="settings of every cell, or seeds=[0,1]")] = None,
    out: Annotated[Path | None, typer.Option(help="folder that all workers share")] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes on this machine")] = 1,
    worker: Annotated[bool, typer.Option("--worker", help="be one of many workers, started by a launcher")] = False,
    tables: Annotated[bool, typer.Option("--tables", help="only the tables of what is there")] = False,
) -> None:
    """Run a comparison: what is missing of it, on any number of machines, then its tables.

    Examples:

      mstdistill reproduce av-digits --workers 2

      mstdistill reproduce my-suite.yaml seeds=[0,1,2] --out runs/my-suite

      srun mstdistill reproduce paper --out /shared/paper --worker      one a task of a SLURM job
    """
    from ..engine.progress import Screen
    from ..suite.plan import load_suite, plan, records, save_suite

    screen = Screen()
    loaded = load_suite(suite, overrides or [])
    folder = out or Path("runs") / f"suite-{loaded.name}"
    grid = plan(loaded)
    from ..suite.page import SuitePage
    from ..suite.run import Worker, run_suite
    from ..suite.tables import judge, save, shown

    folder.mkdir(parents=True, exist_ok=True)
    save_suite(loaded, folder)
    page = SuitePage(grid, folder, all(cell.recipe.run.page for cell in grid.cells), screen.say)
    if worker:
        with page.ending():
            Worker(grid, folder, finished=page.renew).work()
        page.finish()
        return
    if not tables:
        command = ["reproduce", suite, *(overrides or []), "--out", str(folder), "--worker"]
        with page.ending():
            run_suite(grid, folder, workers, command, screen, page.renew)
    found = judge(grid, records(grid, folder))
    paths = save(found, folder)
    screen.say(shown(found))
    for line in found.trouble[:10]:
        screen.say(line)
    screen.say(f"tables: {', '.join(map(str, paths))}")
    if (path := page.finish()) is not None:
        screen.say(f"page: {path}")
