"""The command line: thin. Parse, call, print errors as one line and exit with their code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import export_command, push_command
from .data.options import OUT
from .errors import ConfigError, DataError, LostProcess, MstdistillError, nearest
from .page_commands import demo, report, watch
from .prepare_command import PrepareCommand, parse
from .settings import commands, complete
from .settings.arguments import Overrides, Preset, Recipe

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


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="run folder; the same one continues a run")] = None,
    preset: Preset = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="delete what the run folder holds and start anew")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the resolved recipe and stop")] = False,
) -> None:
    """Train a student: co-train teachers, specialise them, distil, compare.

    Examples:

      mstdistill train av-digits

      mstdistill train av-digits target=audio distill.epochs=20 routing.rule=soft --out runs/soft

      mstdistill train av-mnist data.dir=data/av-mnist --preset released
    """
    from . import config

    resolved = config.load(recipe, overrides or [], preset or [])
    if dry_run:
        typer.echo(config.dump(resolved), nl=False)
        return
    from . import refusals

    refusals.recipe(resolved)
    from .pipeline import train as run

    folder = out or Path("runs") / f"{resolved.task}-{resolved.target}-{resolved.method}-seed{resolved.seed}"
    run(resolved, folder, fresh=fresh)


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a node")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="machines")] = 1,
    gpu: Annotated[str, typer.Option(help="h100, h200, a100, b200, mi300x, l40s, ..., or cpu: this one")] = "h100",
    preset: Preset = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write every figure there")] = None,
) -> None:
    """Predict memory, time and communication of each stage, and say how to launch it; needs neither data nor GPU.

    Examples:

      mstdistill plan av-mnist --gpus 8 --gpu h100

      mstdistill plan nyu-depth-v2 batch_size=12 precision=bf16 --gpus 8 --nodes 2 --gpu a100-40 --json plan.json
    """
    import json

    from . import config, refusals

    resolved = config.load(recipe, overrides or [], preset or [])
    refusals.recipe(resolved)
    from .engine.progress import Screen
    from .files import write_text
    from .planning.figures import figures_of
    from .planning.plan import Request, make_plan
    from .planning.show import shown

    figures = figures_of(make_plan(Request(resolved, gpu, gpus, nodes)), recipe, overrides or [], preset or [])
    screen = Screen()
    for part in shown(figures):
        screen.say(part)
    if json_file is not None:
        write_text(json_file, json.dumps(figures, indent=1))
        screen.say(f"figures: {json_file}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="the folder of a finished run")],
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
) -> None:
    """Print a finished run's student and teachers on a split, from their saved weights.

    Example: mstdistill evaluate runs/av-digits-image-mst-seed0 --split test
    """
    import json

    from rich.table import Table

    from . import refusals

    if split not in ("train", "validation", "test"):
        raise ConfigError(f"split {split!r}: {nearest(split, ('train', 'validation', 'test'))}")
    refusals.unfinished(run)
    from .engine.progress import Screen
    from .files import write_text
    from .pipeline import load_experiment
    from .student import Student

    screen = Screen()
    experiment, _ = load_experiment(run, screen)
    student = Student.from_pretrained(run / "student").to(experiment.accelerator.device)
    result = experiment.evaluate(student.module, (experiment.target,), split)
    title, per_class = result.metrics.per_class
    figures = {**result.as_dict(), title: list(per_class), "absent": list(result.metrics.absent)}
    table = Table(title=f"{run}: distilled student on {split}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in result.as_dict().items():
        table.add_row(name, f"{value:.4f}")
    names = experiment.task.class_names or tuple(str(c) for c in range(experiment.task.num_classes))
    for name, value in zip(names, per_class, strict=False):
        table.add_row(f"{title.replace('_', ' ')} of class {name}", f"{value:.4f}")
    screen.say(table)
    path = run / f"evaluation-{split}.json"
    write_text(path, json.dumps(figures, indent=1))
    screen.say(f"figures: {path}")


@app.command()
def logits(
    source: Annotated[Path, typer.Argument(help="the folder of a finished run, or of an exported student")],
    recipe: Annotated[str | None, typer.Argument(help="whose data an exported student looks at")] = None,
    overrides: Overrides = None,
    network: Annotated[str, typer.Option(help="student, or a teacher of the run by its name")] = "student",
    out: Annotated[Path, typer.Option(help="file to write, .safetensors; .npz: with keys")] = Path(
        "logits.safetensors"
    ),
    top: Annotated[int | None, typer.Option(min=1, help="keep so many classes of a row; none: all")] = None,
) -> None:
    """Write a network's logits on all splits: a file that other runs take for a teacher.

    Examples:

      mstdistill logits runs/large --network both --out both.safetensors

      mstdistill logits runs/large/student my-recipe.yaml data.dir=data/mine --top 20 --out large.safetensors

      accelerate launch -m mstdistill logits runs/large --network both data.key=file --out both.npz
    """
    from . import refusals

    if not (source / "model.safetensors").exists():
        refusals.unfinished(source, "summary.json")
    from .logits_command import write

    write(source, network, recipe, overrides or [], out, top)


@app.command(cls=PrepareCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True,
                                                   "allow_interspersed_args": False})  # fmt: skip
def prepare(
    context: typer.Context,
    task: Annotated[
        str | None,
        typer.Argument(
            help="see above; the options after it are its own", show_default=False, autocompletion=complete.preparable
        ),
    ] = None,
    out: Annotated[str | None, typer.Option(help="folder of the prepared data; none: the task's own place")] = None,
) -> None:
    """Make a task's data from its publisher's files.

    Examples:

      mstdistill prepare av-digits

      mstdistill prepare av-mnist --mnist downloads/mnist --fsdd downloads/fsdd --out data/av-mnist

      mstdistill prepare ravdess --source downloads/ravdess --out data/ravdess --workers 8

      mstdistill prepare ravdess --help
    """
    from .data.sources.registry import find_task, folder_of
    from .engine.progress import Screen
    from .shipped import shipped

    given = OUT.check("out", out)
    known = shipped()
    if task is None:
        names = ", ".join(known.preparable)
        raise ConfigError(f"name a task: mstdistill prepare TASK ...; known: {names}")
    if task.startswith("-"):
        raise ConfigError(f"{task}: the task comes first, then its options: mstdistill prepare TASK {task} ...")
    facts = known.task(task)
    if task not in known.preparable:
        raise DataError(
            f"{task}: training prepares your own data by itself; look them over with: mstdistill check DATA"
        )
    options = parse(facts, context.args)
    folder = folder_of(facts, options.pop("out", given))
    screen = Screen()
    from .data.prepared.store import read_card

    make = find_task(task).prepare
    assert make is not None, task
    make(folder, screen, **options)
    card = read_card(folder)
    counts = ", ".join(f"{name} {facts['rows']:,}" for name, facts in card["splits"].items())
    screen.say(f"{task}: {counts} instances in {folder}  (card.json says what and from where)")
    if card.get("note"):
        screen.say(f"note: {card['note']}")


@app.command()
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
    from .engine.progress import Screen
    from .suite.plan import load_suite, plan, records, save_suite

    screen = Screen()
    loaded = load_suite(suite, overrides or [])
    folder = out or Path("runs") / f"suite-{loaded.name}"
    grid = plan(loaded)
    from .suite.page import SuitePage
    from .suite.run import Worker, run_suite
    from .suite.tables import judge, save, shown

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


@app.command()
def check(
    data: Annotated[str, typer.Argument(help="a prepared folder, a `datasets` folder, a file, or hub:org/name")],
    label: Annotated[str, typer.Option(help="the column of the classes")] = "label",
    rows: Annotated[int | None, typer.Option(min=1, help="look at this many of each split; none: at all")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="a column to look at, or modality=column; may be repeated; none: every usable one"),
    ] = None,
    max_broken: Annotated[float, typer.Option(min=0, max=1, help="share of instances that may be unreadable")] = 0.02,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="instances may lack a modality, as with data.missing=allow")
    ] = False,
    multilabel: Annotated[bool, typer.Option(help="an instance may have several classes at once")] = False,
    label_column: Annotated[
        list[str] | None, typer.Option(help="multi-label: a column of 0s and 1s, a class; may be repeated")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="write the figures there as JSON")] = None,
) -> None:
    """Look a data set over: shapes, ranges, missing and broken values, classes; exit code 2 if it can't be trained on.

    Examples:

      mstdistill check data/my-task --label species

      mstdistill check data/my-task --column photo --column text=caption --max-broken 0.1

      mstdistill check hub:org/name --rows 1000 --out figures.json
    """
    from . import refusals

    refusals.data(data)
    from .data.check.look import check as look_over
    from .data.check.tables import report_tables
    from .engine.progress import Screen

    pairs = [one.partition("=") for one in column or ()]
    columns = {modality: name or modality for modality, _, name in pairs} or None
    found = look_over(data, label, rows=rows, columns=columns, max_broken=max_broken,
                      missing="allow" if allow_missing else "refuse",
                      multilabel=multilabel, label_columns=label_column)  # fmt: skip
    screen = Screen()
    for part in report_tables(found):
        screen.say(part)
    if out is not None:
        found.save(out)
        screen.say(f"figures: {out}")
    if not found.usable:
        raise typer.Exit(2)


@app.command()
def tasks() -> None:
    """List tasks, recipes and backbones."""
    from rich.table import Table

    from .config import PRESETS, recipe_names
    from .data.options import flag
    from .data.sources.registry import folder_of
    from .engine.progress import Screen
    from .shipped import shipped

    screen, known = Screen(), shipped()
    table = Table("task", "what", "modalities", "classes", "prepared", title="tasks", title_justify="left")
    for task in known.tasks.values():
        shapes = "\n".join(
            f"{name} {'x'.join(str(n or 'any') for n in shape)}" for name, shape in task.modalities.items()
        )
        there = "yes" if (folder_of(task, None) / "card.json").exists() else "on first use" if task.embedded else "no"
        table.add_row(task.name, task.title, shapes, str(task.num_classes or "any"), there)
    screen.say(table)
    table = Table("prepare", "option", "what", "value", "default", title="options of prepare", title_justify="left")
    for task in known.tasks.values():
        for number, (name, option) in enumerate(task.options.items()):
            start = "" if number else task.name
            table.add_row(start, flag(name), option.help, option.wanted, option.default_shown)
    screen.say(table)
    table = Table("backbone", "inputs", "what", title="backbones", title_justify="left")
    for name, backbone in known.backbones.items():
        table.add_row(name, ", ".join("x".join(map(str, shape)) for shape in backbone.inputs), backbone.about)
    screen.say(table)
    screen.say(f"recipes: {', '.join(recipe_names())}    presets: {', '.join(PRESETS)}")


@app.command()
def taps(
    model: Annotated[
        str | None, typer.Argument(help="a backbone's name (see: mstdistill tasks)", autocompletion=complete.backbones)
    ] = None,
    hf: Annotated[str | None, typer.Option(help="instead: a Hugging Face model, hub id or folder")] = None,
    num_classes: Annotated[int, typer.Option(min=2, help="of the heads that are new")] = 10,
    recipe: Annotated[bool, typer.Option("--recipe", help="also print lines for a recipe")] = False,
    heads: Annotated[int, typer.Option(help="heads of the mask's attention")] = 3,
    hidden_dim_factor: Annotated[int, typer.Option(help="hidden width = d // (factor * heads) * heads")] = 2,
) -> None:
    """List where masks can sit in a network: features with their shapes and what a mask costs there.

    Examples:

      mstdistill taps CNN-I

      mstdistill taps --hf google-bert/bert-base-uncased --recipe
    """
    from . import refusals

    if (model is None) == (hf is None):
        raise ConfigError("name either a backbone or a Hugging Face model: mstdistill taps CNN-I, or taps --hf ID")
    if model is not None:
        refusals.backbone(model)
    from .engine.progress import Screen
    from .report.taps import of_backbone, of_huggingface, recipe_lines, taps_table

    network = of_backbone(model, num_classes) if model is not None else of_huggingface(str(hf), num_classes)
    screen = Screen()
    screen.say(taps_table(network, heads, hidden_dim_factor))
    if recipe:
        typer.echo(recipe_lines(network))


app.command()(export_command.export)
app.command()(push_command.push)


@app.command("import")
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="a state dict saved by torch")],
    backbone: Annotated[
        str, typer.Option(help="whose weights these are (see: mstdistill tasks)", autocompletion=complete.backbones)
    ],
    out: Annotated[Path, typer.Option(help="where they go: a new .safetensors file")],
    num_classes: Annotated[int | None, typer.Option(min=1, help="none: as many as the weights have")] = None,
    option: Annotated[list[str] | None, typer.Option(help="of the backbone, as key=value; may be repeated")] = None,
    bgr: Annotated[
        bool, typer.Option("--bgr", help="it was trained on pictures in BGR order (the authors' RAVDESS): turn its "
                           "first layer to RGB, which this project's pictures have")
    ] = False,
) -> None:  # fmt: skip
    """Check a checkpoint of the authors' code against a backbone and keep it as safetensors; runs no code of the file.

    Example: mstdistill import CNN-I.pth --backbone CNN-I --out weights/CNN-I.safetensors
    """
    from . import refusals

    refusals.backbone(backbone)
    from .engine.progress import Screen
    from .importing import import_state_dict, parse_options

    found = import_state_dict(checkpoint, backbone, num_classes, parse_options(option or []), out, bgr)
    turned = ", its first layer turned from BGR to RGB" if bgr else ""
    Screen().say(f"{backbone}, {found.num_classes} classes: {found.tensors} tensors, {found.parameters:,} parameters"
                 f"{turned}; in a recipe:  weights: {out}")  # fmt: skip


for command in (report, watch, demo, commands.settings, commands.new, commands.completion):
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
