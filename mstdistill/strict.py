"""What all settings have in common: unknown keys are errors, and keys that came later leave old runs as they are."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_serializer
from pydantic import SerializerFunctionWrapHandler as Inner


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    # keys that came later: a run is bound to its settings, and one begun without these goes on
    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, inner: Inner) -> dict[str, Any]:
        content: dict[str, Any] = inner(self)
        for name in self.later:
            if getattr(self, name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content
