"""`mstdistill export`: a run's student, copied out or made into files for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError, DataError
from ..export.names import CALIBRATE, FORMATS, QUANTISATIONS, Kind, left_out


def export(
    run: Annotated[Path, typer.Argument(help="the folder of a finished run")],
    out: Annotated[Path, typer.Argument(help="where the student goes: a new folder")],
    form: Annotated[
        str | None, typer.Option("--format", help=f"{', '.join(FORMATS)}; several joined by commas")
    ] = None,
    quantize: Annotated[str | None, typer.Option(help=f"{', '.join(QUANTISATIONS)}; several joined by commas")] = None,
    calibrate: Annotated[int, typer.Option(help="training rows that int8-static is calibrated on")] = CALIBRATE,
    rows: Annotated[int | None, typer.Option(help="of each split that artefacts are tried on; none: all")] = None,
    without_data: Annotated[
        bool, typer.Option("--without-data", help="try artefacts on random inputs: no accuracy, no int8-static")
    ] = False,
) -> None:
    """Copy a run's student out, or make files of it for other runtimes, each run and compared with the student.

    Without --format and --quantize: safetensors, config and model card, loadable in three lines. With them every file
    is tried on the run's validation and test rows; exit code 1 if one is further off than it may be (it is kept).

    Examples:

      mstdistill export runs/av-digits-image-mst-seed0 my-student

      mstdistill export runs/av-digits-image-mst-seed0 my-student --format onnx --quantize none,int8-static
    """  # fmt: skip
    from .. import refusals

    if form is None and quantize is None:
        refusals.unfinished(run)
        _copy(run, out)
        return
    formats, numbers = _listed(form, "safetensors"), _listed(quantize, "none")
    wanted = refusals.artefacts(run, out, formats, numbers, calibrate, rows)
    if without_data and any(kind.quantise == "int8-static" for kind in wanted):
        raise ConfigError("int8-static is calibrated on training rows; leave --without-data out, or take int8-dynamic")
    _artefacts(run, out, formats, numbers, wanted, calibrate, rows, without_data)


def _listed(names: str | None, default: str) -> list[str]:
    return [name.strip() for name in (default if names is None else names).split(",") if name.strip()]


def _copy(run: Path, out: Path) -> None:
    import shutil

    if out.exists():
        raise ConfigError(f"{out} is there already; choose another folder")
    from ..engine.progress import Screen
    from ..files import replace_folder
    from ..student import Student

    source = run / "student"
    with replace_folder(out) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
    student = Student.from_pretrained(out)
    count = sum(p.numel() for p in student.parameters())
    screen = Screen()
    kind = student.config["backbone"] or (student.config.get("hf") or {}).get("model") or "your own network"
    screen.say(f"{out}: {kind}, {count:,} parameters, sees {student.config['modality']}")
    screen.say(f'from mstdistill import Student\nstudent = Student.from_pretrained("{out}")\nstudent.predict(batch)')


def _artefacts(
    run: Path, out: Path, formats: list[str], numbers: list[str], wanted: list[Kind], calibrate: int,
    rows: int | None, without_data: bool,
) -> None:  # fmt: skip
    from ..engine.progress import Screen
    from ..pipeline import load_data
    from ..student import Student

    screen = Screen()
    student = Student.from_pretrained(run / "student")
    data: dict[str, object] = {}
    if not without_data:
        try:
            task, view, splits = load_data(run, screen)
        except DataError as error:
            raise DataError(f"{error}; or try artefacts on random inputs: --without-data") from None
        student.config["ignore_index"] = task.ignore_index  # students of older versions don't say
        data = {"view": view, **splits}
    for title in left_out(formats, numbers):
        screen.say(f"{title}: there is no such thing; left out")
    screen.say(f"making and trying {', '.join(kind.title for kind in wanted)}")
    made = student.export(out, formats, numbers, calibrate=calibrate, rows=rows, **data)  # type: ignore[arg-type]
    screen.say(made.table())
    screen.say(f"{out}: export.md, export.json, README.md; {made.figures['seconds']:.0f} s")
    if not made.within:
        for line in made.beyond:
            screen.say(f"beyond its tolerance, kept: {line}")
        raise typer.Exit(1)
