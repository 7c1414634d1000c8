"""From what a person draws, records or types to what a run's networks see: by the processors of a user's own data, or
by a published task's own way from raw values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..data.decode.picture import decode_image, pixels
from ..data.decode.sound import decode_audio
from ..data.prepared.views import View
from ..data.sources.published import card_of
from ..data.task import Raw
from ..data.view import modality_of
from ..errors import ConfigError, DataError
from ..material import Material

Reader = Callable[[Any], np.ndarray]
# What a person can give, and what with.
GIVEN = {"image": "a picture", "audio": "a sound", "text": "a text"}


def readers(material: Material) -> tuple[dict[str, str], dict[str, Reader]]:
    """What a person can give, modality -> kind, the student's first; and how each view is made of it.

    Raises:
        ConfigError: the student's modality has no raw form.
        DataError: the prepared data aren't there.
    """
    kinds: dict[str, str] = {}
    found: dict[str, Reader] = {}
    target, task = modality_of(material.target), material.task
    if material.data is not None:
        for sight in (material.student, *material.teachers):
            for view in sight.views:
                if view.kind in GIVEN:
                    kinds[view.modality] = view.kind
                    found[view.name] = _of_own(view)
    elif task.raw:
        card = card_of(task, material.recipe.data.dir)
        for modality, read in task.raw.items():
            kinds[modality] = task.forms[modality].kind
            found[modality] = _of_task(read, card)
    if target not in kinds:
        what = "an array, which nobody draws, records or types" if material.data is not None else (
            "features, and the task has no way from a picture or a sound to them")  # fmt: skip
        raise ConfigError(f"task {task.name}: its student sees {target}, {what}; there is no demo of it")
    order = sorted(kinds, key=lambda name: name != target)
    return {name: kinds[name] for name in order}, found


def decoded(kind: str, value: Any, modality: str) -> Any:
    """What the page gives as `instance` would: a PIL picture, (samples, rate), or a text; None: nothing was given.

    Raises:
        DataError: it can't be read.
    """
    where = f"this {modality}"
    if kind == "image":
        return _picture(value, where)
    if kind == "audio":
        return None if value is None else decode_audio(value, where)
    return value if value and value.strip() else None


def _picture(value: tuple[Any, Mapping[str, Any] | None], where: str) -> Any:
    """The picture that was dropped, else the drawing; None: neither."""
    dropped, drawing = value
    if dropped is not None:
        return decode_image(dropped, where)
    composite = None if drawing is None else drawing.get("composite")
    if composite is None:
        return None
    whole = decode_image(composite, where)
    return None if np.ptp(np.asarray(whole.convert("L"))) == 0 else whole


def _of_task(read: Raw, card: Mapping[str, Any]) -> Reader:
    return lambda value: read(value, card)


def _of_own(view: View) -> Reader:
    if view.processing is not None:
        return view.processing
    channels, height, width = view.column.shape

    def read(picture: Any) -> np.ndarray:
        return pixels(picture.convert("L" if channels == 1 else "RGB").resize((width, height)))

    return read


def seen(readers: Mapping[str, Reader], given: Mapping[str, Any], views: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The views that can be made of what was given, by modality.

    Raises:
        DataError: a value that its reader can't take.
    """
    made = {view: readers[view](given[modality_of(view)]) for view in dict.fromkeys(views)
            if view in readers and modality_of(view) in given}  # fmt: skip
    for view, array in made.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{modality_of(view)}: NaN or Inf came of it; give another one")
    return made
