"""Recipes: every shipped one is valid; mistakes name the nearest valid key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mstdistill.config import PRESETS, dump, load, parse, recipe_names
from mstdistill.data.sources.registry import find_task
from mstdistill.errors import ConfigError


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("presets", [[], ["released"]])
def test_shipped_recipes(name: str, presets: list[str]) -> None:
    recipe = load(name, presets=presets)
    task = find_task(recipe.task)
    assert set(recipe.models) == set(task.modalities)
    assert parse(yaml.safe_load(dump(recipe))) == recipe
    if presets:
        assert recipe.mask.mode == "cumulative"
        assert recipe.cotrain.epochs == PRESETS["released"]["cotrain"]["epochs"] == 1


def test_overrides_and_files(tmp_path: Path) -> None:
    recipe = load("av-digits", ["distill.epochs=7", "target=audio", "routing.rule=soft", "run.trackers=[]"])
    assert (recipe.distill.epochs, recipe.target, recipe.routing.rule, recipe.run.trackers) == (7, "audio", "soft", [])
    path = tmp_path / "mine.yaml"
    path.write_text(dump(recipe))
    assert load(str(path)) == recipe


@pytest.mark.parametrize(("source", "overrides", "words"), [
    ("av-digit", [], "unknown task or recipe 'av-digit'; did you mean av-digits"),
    ("av-digits", ["distill.epoch=3"], "unknown key 'distill.epoch'; did you mean epochs"),
    ("av-digits", ["routng.k=3"], "unknown key 'routng'; did you mean routing"),
    ("av-digits", ["models.image.student.backbon=x"], "'models.image.student.backbon'; did you mean backbone"),
    ("av-digits", ["distill.epochs"], "write key=value"),
    ("av-digits", ["distill.epochs=many"], "distill.epochs='many'"),
    ("av-digits", ["cotrain.lr=-1"], "cotrain.lr=-1"),
    ("av-digits", ["seed=[1"], "not valid YAML"),
    ("none.yaml", [], "can't be read"),
])  # fmt: skip
def test_mistakes_are_one_line(source: str, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(source, overrides)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_target_and_preset() -> None:
    with pytest.raises(ConfigError, match="did you mean image"):
        _ = load("av-digits", ["target=imag"]).pairing
    with pytest.raises(ConfigError, match="released"):
        load("av-digits", presets=["release"])
