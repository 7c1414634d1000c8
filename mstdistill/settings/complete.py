"""What a shell offers after a TAB: recipes, keys and their values, tasks and the like; needs no torch."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

import typer

from ..errors import ConfigError, MstdistillError, nearest

# set by a shell that asks for completions, to the form of the answer
ASKED = "_MSTDISTILL_COMPLETE"
SHELLS = ("bash", "zsh", "fish")

# Typer's own for bash leaves words cut at "=", as bash has them, and puts a space after a key.
_BASH = """\
_mstdistill_completion() {
    local IFS=$'\\n' words=() at=0 i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        if ((i)) && [[ ${COMP_WORDS[i]} == "=" || ${COMP_WORDS[i - 1]} == "=" ]]; then
            words[at]+=${COMP_WORDS[i]}
        else
            at=${#words[@]}
            words+=("${COMP_WORDS[i]}")
        fi
    done
    COMPREPLY=($(env COMP_WORDS="${words[*]}" COMP_CWORD=$at %s=complete_bash "$1"))
    if [[ ${words[at]} == *=* && $COMP_WORDBREAKS == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#*=}")
    fi
    if [[ ${COMPREPLY[0]} == *= ]]; then
        compopt -o nospace 2> /dev/null
    fi
}
complete -o default -F _mstdistill_completion mstdistill
"""


def script(shell: str) -> str:
    """What a shell is to read.

    Raises:
        ConfigError: another shell.
    """
    if shell not in SHELLS:
        raise ConfigError(f"no completion for {shell!r}; {nearest(shell, SHELLS)}")
    if shell == "bash":
        return _BASH % ASKED
    from typer.completion import get_completion_script

    return get_completion_script(prog_name="mstdistill", complete_var=ASKED, shell=shell) + "\n"


def prepare_answer() -> None:
    """Let typer answer a shell in the shell's form."""
    from typer.completion import completion_init

    completion_init()


def recipes(incomplete: str) -> list[str]:
    """Shipped recipes, and files here."""
    from ..recipe_files import recipe_names

    return _fitting([*recipe_names(), *_files(incomplete)], incomplete)


def suites(incomplete: str) -> list[str]:
    """Shipped suites, and files here."""
    from ..suite.plan import suite_names

    return _fitting([*suite_names(), *_files(incomplete)], incomplete)


def presets(incomplete: str) -> list[str]:
    """Presets."""
    from ..presets import PRESETS

    return _fitting(PRESETS, incomplete)


def tasks(incomplete: str) -> list[str]:
    """Tasks."""
    from ..shipped import shipped

    return _fitting(shipped().tasks, incomplete)


def preparable(incomplete: str) -> list[str]:
    """Tasks that `prepare` makes."""
    from ..shipped import shipped

    return _fitting(shipped().preparable, incomplete)


def backbones(incomplete: str) -> list[str]:
    """Backbones."""
    from ..shipped import shipped

    return _fitting(shipped().backbones, incomplete)


def shells(incomplete: str) -> list[str]:
    """Shells."""
    return _fitting(SHELLS, incomplete)


def keys(incomplete: str) -> list[tuple[str, str]]:
    """Keys alone."""
    from .keys import settings

    return [(one.key, one.about) for one in settings() if one.key.startswith(incomplete)]


def overrides(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """key=value of a recipe: keys, for its own targets, and after the = the values that can be told."""
    from .changes import setting_of
    from .keys import ANY, settings

    key, equals, _ = incomplete.partition("=")
    if equals:
        setting = setting_of(key)
        known = [f"{key}={value}" for value in (setting.choices if setting else ())]
        if key == "target":
            known = [f"{key}={target}" for target in _targets(context)]
        return [(one, "") for one in known if one.startswith(incomplete)]
    found = []
    for one in settings():
        if one.typed and not one.suite:
            targets = _targets(context) if ANY in one.key else [ANY]
            found += [(f"{one.key.replace(ANY, target)}=", one.about) for target in targets]
    return [one for one in found if one[0].startswith(incomplete)]


def _targets(context: typer.Context) -> list[str]:
    from .. import config

    try:
        return list(config.load(context.params.get("recipe") or "").models)
    except MstdistillError:
        return []


def _files(incomplete: str) -> list[str]:
    return [str(path) for path in Path().glob(f"{glob.escape(incomplete)}*.yaml")] if "/" not in incomplete else []


def _fitting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
