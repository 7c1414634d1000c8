"""The JSON schema of recipes, by which editors complete and check them; the committed one lies beside the recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config import Recipe
from .keys import names_of

SCHEMA = Path(__file__).parents[1] / "recipes" / "schema.json"


def schema_text() -> str:
    """The schema of the models as they are."""
    made = _tidy(Recipe.model_json_schema())
    for part in (made, *made["$defs"].values()):
        for name, one in part["properties"].items():
            _name_values(name, one)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "a recipe of mstdistill"}
    return json.dumps({**head, **made}, indent=1) + "\n"


def modeline(schema: str) -> str:
    """The comment of a recipe that tells editors its schema, a path from the recipe's folder or a whole one."""
    return f"# yaml-language-server: $schema={schema}"


def _name_values(name: str, content: dict[str, Any]) -> None:
    """Name a text's values where only registered names are any."""
    known = names_of(name, str)
    for one in (content, *content.get("anyOf", ())):
        if known and one.get("type") == "string" and "enum" not in one:
            one["enum"] = list(known)


def _tidy(made: Any) -> Any:
    """Without titles, which repeat the keys, and without what only some versions of pydantic say: that all may be."""
    if isinstance(made, list):
        return [_tidy(one) for one in made]
    if not isinstance(made, dict):
        return made
    return {
        key: _tidy(one)
        for key, one in made.items()
        if not (key == "title" and isinstance(one, str)) and not (key == "additionalProperties" and one is True)
    }
