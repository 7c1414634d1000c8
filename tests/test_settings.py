"""Every setting is explained: lists, new recipes, the schema, the page and completion say what the models say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from mstdistill import config
from mstdistill.config import CacheSettings, Recipe, RoutingSettings, Settings
from mstdistill.methods import BASELINES, find_baseline
from mstdistill.routing import RULES
from mstdistill.settings.changes import changes, setting_of
from mstdistill.settings.keys import ANY, one_line, settings
from mstdistill.settings.schema import SCHEMA
from mstdistill.settings.show import yaml_text
from mstdistill.settings.start import Start, recipe_text
from mstdistill.shipped import shipped
from tests.conftest import Command, refused

ROOT = Path(__file__).parents[1]
RECIPES = sorted([*(ROOT / "mstdistill" / "recipes").glob("*.yaml"), *(ROOT / "docs" / "recipes").glob("*.yaml")])
PUBLISHED = [(name, target) for name in config.recipe_names() for target in config.load(name).models]


def models(model: type[Settings] = Settings) -> list[type[Settings]]:
    found = [one for child in model.__subclasses__() for one in models(child)]
    return [model, *found] if model.__module__.startswith("mstdistill.") else found


def test_every_field_has_a_line_and_every_setting_a_row() -> None:
    # a method's own numbers are settings too; `baseline.options` stands for them
    options = {method.Options for method in map(find_baseline, BASELINES) if method} - {Settings}
    assert {Recipe, *options} <= {*models()}
    for model in models():
        for name, field in model.model_fields.items():
            line = one_line(field)
            assert line, (model, name)
            assert "\n" not in line, (model, name)
            if model not in options:
                assert any(re.search(rf"(^|\.){name}(\.|$)", row.key) for row in settings()), (model, name)
    keys = [(row.suite, row.key) for row in settings()]
    assert len(set(keys)) == len(keys)


def test_rows_are_what_a_command_line_takes() -> None:
    for row in settings():
        if row.suite or not row.typed or row.required or row.key.endswith("backbone"):
            continue
        key = row.key.replace(ANY, "image")
        config.load("av-digits", [f"{key}={yaml_text(row.default)}"])
        for choice in row.choices if not key.startswith("models") else ():
            config.load("av-digits", [f"{key}={choice}"])
        with pytest.raises(config.ConfigError):
            config.load("av-digits", [f"{key}={{no: such}}" if row.takes != "a mapping" else f"{key}=7"])
    rule = setting_of("routing.rule")
    assert rule is not None
    assert set(rule.choices) == set(RULES)


def test_a_default_holds_unless_another_of_its_part_is_set() -> None:
    for row in settings():
        if row.beside is not None:
            part, _, name = row.key.rpartition(".")
            other = next(one for one in settings() if one.key.startswith(f"{part}.") and one.key != row.key)
            found: Any = config.load("av-digits", [f"{part}=null", f"{other.key}={yaml_text(other.default)}"])
            for step in part.split("."):
                found = getattr(found, step)
            assert getattr(found, name) == row.beside


@pytest.mark.parametrize("name", config.recipe_names())
def test_a_recipe_is_its_changes(name: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain.yaml"
    plain.write_text("{}")
    of_recipe = {key: by[name][0] for key, by in changes().items() if name in by and not key.startswith("models")}
    rebuilt = config.load(str(plain), [f"{key}={yaml_text(value)}" for key, value in of_recipe.items()])
    assert rebuilt.model_dump(exclude={"models"}) == config.load(name).model_dump(exclude={"models"})


def test_a_word_finds_settings(command: Command) -> None:
    code, out, _ = command("settings", "routing")
    assert code == 0
    for key in ("routing.rule = topk-mean", "routing.k = 1", "routing.signal = none"):
        assert key in out
    assert "soft (av-digits)" in out
    assert "seed" not in command("settings", "models.image.student.hf=x")[1]
    refused(command("settings", "epoks"), "no setting has 'epoks'", "epochs")
    refused(command("settings", "--json", "--schema"), "give one of")
    rows = json.loads(command("settings", "--json")[1])
    assert {row["key"] for row in rows if row["file"] == "recipe"} == {row.key for row in settings() if not row.suite}
    assert next(row for row in rows if row["key"] == "distill.epochs")["changed_by"]["av-digits"]
    assert "mstdistill settings" in " ".join(command("train", "--help")[1].replace("│", " ").split())


def uncommented(text: str) -> str:
    """With every setting that stands behind a # in force."""
    return "\n".join(re.sub(r"^#((?:  )*\w+:)", r"\1", line) for line in text.splitlines())


@pytest.mark.parametrize(("name", "target"), PUBLISHED)
def test_a_new_recipe_is_the_shipped_one(name: str, target: str, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "mine.yaml"
    assert command("new", tmp_path / "mine", "--task", name, "--target", target)[0] == 0
    code, out, _ = command("train", path, "--dry-run")
    wanted = config.load(name, [f"target={target}"])
    assert (code, config.parse(yaml.safe_load(out))) == (0, wanted)
    text = path.read_text()
    path.write_text(uncommented(text))
    assert config.load(str(path)) == wanted
    assert len(yaml.safe_load(path.read_text())) == len(Recipe.model_fields)
    settings_there = [line for line in text.splitlines() if line and not line.startswith(("# ", "   ")) and ":" in line]
    assert all("  # " in line for line in settings_there)


def test_a_new_recipe_for_own_data(tmp_path: Path, command: Command) -> None:
    words = (
        "--data",
        "data/b",
        "--label",
        "species",
        "--modality",
        "photo",
        "--modality",
        "song=sound",
        "--target",
        "song",
    )
    code, out, _ = command("new", tmp_path / "mine.yaml", *words, "--modality", "radar")
    assert code == 0
    assert "org/name" in out
    recipe = config.load(str(tmp_path / "mine.yaml"))
    assert recipe == Start("own", "song", "data/b", "species", ("photo", "song=sound", "radar")).recipe()
    assert (recipe.data.dir, recipe.data.label) == ("data/b", "species")
    assert recipe.data.columns == {"photo": "photo", "song": "sound", "radar": "radar"}
    assert [teacher.modalities for teacher in recipe.pairing.teachers] == [["photo"], ["radar"]]
    assert config.load(str(tmp_path / "mine.yaml")) == recipe
    assert command("train", tmp_path / "mine.yaml", "--dry-run")[0] == 0


@pytest.mark.parametrize(("words", "said"), [
    (("--task", "av-mnst"), "did you mean av-mnist"),
    (("--task", "av-mnist", "--target", "imag"), "did you mean image"),
    (("--task", "av-mnist", "--label", "x"), "--label goes with --task own"),
    (("--target", "smell"), "no such modality"),
    (("--modality", "image"), "two or more"),
    (("--modality", "=x", "--modality", "y"), "NAME=COLUMN"),
])  # fmt: skip
def test_a_new_recipe_is_refused(words: tuple[str, ...], said: str, tmp_path: Path, command: Command) -> None:
    refused(command("new", tmp_path / "mine", *words), said)
    assert not list(tmp_path.iterdir())


def test_a_new_recipe_replaces_nothing(tmp_path: Path, command: Command) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    refused(command("new", tmp_path / "mine"), "is there already")
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_the_schema_and_the_page_are_of_these_models(command: Command) -> None:
    for option, path in (("--schema", SCHEMA), ("--markdown", ROOT / "docs" / "settings.md")):
        code, out, _ = command("settings", option)
        assert code == 0
        assert out == path.read_text(), f"mstdistill settings {option} > {path.relative_to(ROOT)}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_pass_their_schema(path: Path) -> None:
    text = path.read_text()
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert named is not None
    found = (path.parent / named[1]).resolve()
    assert found == SCHEMA.resolve()
    Draft202012Validator(json.loads(found.read_text())).validate(yaml.safe_load(text))


@pytest.mark.parametrize("change", [
    {"sed": 3}, {"distill": {"epoch": 3}}, {"distill": {"epochs": -1}}, {"task": "av-mnst"}, {"method": "mst2"},
    {"routing": {"rule": "best"}}, {"models": {"image": {"student": {"backbone": "CNN-J"}}}},
])  # fmt: skip
def test_mistakes_fail_the_schema(change: dict[str, Any]) -> None:
    content = yaml.safe_load((SCHEMA.parent / "av-digits.yaml").read_text())
    schema = Draft202012Validator(json.loads(SCHEMA.read_text()))
    Draft202012Validator.check_schema(schema.schema)
    assert schema.is_valid(content)
    assert not schema.is_valid({**content, **change})


def test_new_recipes_pass_the_schema() -> None:
    schema = Draft202012Validator(json.loads(SCHEMA.read_text()))
    for task in shipped().tasks:
        text = recipe_text(Start(task).recipe(), "mine.yaml")
        for content in (yaml.safe_load(text), yaml.safe_load(uncommented(text))):
            schema.validate(content)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment whose PATH has the command."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "mstdistill"
    program.write_text(f"#!{sys.executable}\nfrom mstdistill.cli import main\nmain()\n")
    program.chmod(0o755)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": ":".join(filter(None, paths))}


@pytest.mark.parametrize(("words", "offered"), [
    (("train", "av-d"), ["av-digits"]),
    (("train", "av-digits", "rout"), [f"routing.{name}=" for name in RoutingSettings.model_fields]),
    (("train", "av-digits", "routing.rule", "=", "topk-w"), ["topk-weighted"]),
    (("train", "av-digits", "target", "="), ["image", "audio"]),
    (("train", "av-digits", "seed", "=", "3", "models.audio.student.h"),
     ["models.audio.student.hf=", "models.audio.student.head="]),
    (("train", "mine"), ["mine.yaml"]),
    (("prepare", "rav"), ["ravdess"]),
    (("reproduce", "av-digits-a"), ["av-digits-ablation"]),
    (("settings", "distill.ca"), [f"distill.cache.{name}" for name in CacheSettings.model_fields]),
])  # fmt: skip
def test_bash_completes(words: tuple[str, ...], offered: list[str], installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: av-digits\n")
    typed = " ".join(f"'{word}'" for word in ("mstdistill", *words))
    code = f"""
        eval "$(mstdistill completion bash)"
        complete -p mstdistill > /dev/null || exit 1
        COMP_WORDS=({typed}); COMP_CWORD={len(words)}
        _mstdistill_completion mstdistill
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "--norc", "-c", code], env=installed, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split() == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_answered(shell: str, installed: dict[str, str]) -> None:
    script = subprocess.run(["mstdistill", "completion", shell], env=installed, capture_output=True, text=True)
    asked = f"complete_{shell}"
    assert f"_MSTDISTILL_COMPLETE={asked}" in script.stdout
    asks = {"_MSTDISTILL_COMPLETE": asked, "_TYPER_COMPLETE_ARGS": "mstdistill train av-digits routing.rule=so",
            "_TYPER_COMPLETE_FISH_ACTION": "get-args"}  # fmt: skip
    answer = subprocess.run(["mstdistill"], env={**installed, **asks}, capture_output=True, text=True)
    assert "routing.rule=soft" in answer.stdout
