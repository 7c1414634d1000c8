"""`mstdistill tasks`: what there is."""

from __future__ import annotations


def tasks() -> None:
    """List tasks, recipes and backbones."""
    from rich.table import Table

    from ..config import PRESETS, recipe_names
    from ..data.options import flag
    from ..data.sources.registry import folder_of
    from ..engine.progress import Screen
    from ..shipped import shipped

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
