"""`mstdistill prepare TASK`: each task's own options, as a command that typer parses and explains."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..data.options import OUT, Option, checked, flag, unknown
from ..data.task import Task
from ..errors import ConfigError, DataError
from ..settings import complete

_KINDS: dict[type, str] = {str: "text", int: "int", float: "float", tuple: "a,b,..."}
# click's own class, or that of the copy within newer typers
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def parse(task: Task, words: list[str]) -> dict[str, Any]:
    """A task's options, and `out` where it is given, from the words after the task's name; of a repeated one the last.

    Raises:
        typer.Exit: the task's help was asked for, and shown.
        ConfigError: an unknown option, a missing or a wrong value.
    """
    known = {**task.options, "out": OUT}
    taken: list[dict[str, Any]] = []
    _check_values(task, known, words)
    try:
        _command(task, known, taken).main(words, f"mstdistill prepare {task.name}", standalone_mode=False)
    except _UsageError as error:
        if hasattr(error, "possibilities"):  # an unknown option
            raise ConfigError(unknown(task.name, known, error.option_name)) from None  # type: ignore[attr-defined]
        line = error.format_message()  # type: ignore[attr-defined]
        raise ConfigError(
            f"{task.name}: {line[:1].lower()}{line[1:].rstrip('.')}; see: {_usage(task)} --help"
        ) from None
    if not taken:
        raise typer.Exit
    return checked(task.name, known, taken[0])


def _check_values(task: Task, known: Mapping[str, Option], words: list[str]) -> None:
    """Refuse an option whose value is left out: a parser would take the next option for it."""
    valued = {flag(name): option for name, option in known.items() if option.kind is not bool}
    given = words[: words.index("--")] if "--" in words else words
    after = iter([*given, "--"])
    for word in after:
        if word in valued and next(after).startswith("--"):
            raise ConfigError(f"{task.name}: {word} needs a value, {valued[word].wanted}; see: {_usage(task)} --help")


def example(task: Task) -> str:
    """A command that prepares a task."""
    given = (f" {flag(name)}" + ("" if option.example is True else f" {option.example}")
             for name, option in task.options.items() if option.example)  # fmt: skip
    out = "" if task.embedded else f" --out data/{task.name}"
    return _usage(task) + "".join(given) + out


def _usage(task: Task) -> str:
    return f"mstdistill prepare {task.name}"


def _command(task: Task, known: Mapping[str, Option], taken: list[dict[str, Any]]) -> Any:
    """The command of a task: it puts the options given into `taken`, texts as yet."""

    def take(**options: Any) -> None:
        taken.append({name: value for name, value in options.items() if value is not None})

    annotations = {name: _annotation(name, option) for name, option in known.items()}
    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
                  for name, annotation in annotations.items()]  # fmt: skip
    take.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    take.__annotations__ = annotations
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command(help=f"{task.title}\n\nExample: {example(task)}")(take)
    return typer.main.get_command(app)


def _annotation(name: str, option: Option) -> Any:
    """What typer is to know of an option; its value stays a text, which `Option.check` reads."""
    default = option.default_shown
    about = f"{option.help}; default: {default}" if default else option.help
    if option.kind is bool:
        return Annotated[bool | None, typer.Option(flag(name), help=about)]
    metavar = "|".join(option.choices) or _KINDS[option.kind]
    if option.least is not None:
        metavar += f" {option.least}.." if option.most is None else f" {option.least}..{option.most}"
    return Annotated[str | None, typer.Option(flag(name), help=about, metavar=metavar, show_default=False)]


class PrepareCommand(TyperCommand):
    """`prepare` itself, whose help lists the tasks."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from ..shipped import shipped

        every = shipped()
        known = [f"  {name}: {every.tasks[name].title}" for name in every.preparable]
        self.help = "\n\n".join([self.help or "", "Tasks (mstdistill prepare TASK --help: its options):", *known])
        super().format_help(ctx, formatter)


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
    from ..data.sources.registry import find_task, folder_of
    from ..engine.progress import Screen
    from ..shipped import shipped

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
    from ..data.prepared.store import read_card

    make = find_task(task).prepare
    assert make is not None, task
    make(folder, screen, **options)
    card = read_card(folder)
    counts = ", ".join(f"{name} {facts['rows']:,}" for name, facts in card["splits"].items())
    screen.say(f"{task}: {counts} instances in {folder}  (card.json says what and from where)")
    if card.get("note"):
        screen.say(f"note: {card['note']}")
