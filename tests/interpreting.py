"""Triton's interpreter without work that it repeats: kernels compute the same, in half the time.

For each call of a function within a kernel it replaces every member of `triton.language` anew, and for each value it
builds its table of NumPy's types.
"""

from __future__ import annotations

from typing import Any


def speed_up() -> None:
    """Once, where kernels are interpreted; what another version of Triton does otherwise stays as it is."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter

        patch, types, restore = interpreter._patch_lang, interpreter._get_np_dtype, interpreter._LangPatchScope.restore
    except (ImportError, AttributeError):
        return
    seen: set[tuple[bool, bool]] = set()  # what the running launch has replaced: triton.language, its core

    def once(fn: Any) -> Any:
        names = fn.__globals__.values()
        wanted = (any(value is tl for value in names), any(value is tl.core for value in names))
        if wanted in seen:
            return interpreter._LangPatchScope()
        scope = patch(fn)
        seen.add(wanted)
        return scope

    def ended(scope: Any) -> None:
        seen.clear()
        restore(scope)

    known: dict[str, Any] = {}

    def named(scalar: Any) -> Any:
        name = scalar.name
        if name not in known:
            known[name] = types(scalar)
        return known[name]

    interpreter._patch_lang = once
    interpreter._LangPatchScope.restore = ended
    interpreter._get_np_dtype = lambda kind: named(kind.scalar)
