"""Tests run where no call is dear for its depth alone.

Python keeps its frames in chunks of 16 kB: a call for which a chunk has no room maps another one, and returning from it
gives that back. In a loop at such a depth, which is chance, the kernel works longer than Python. A frame as large as
`_wide`'s gets a chunk of its own, with room for all that it calls.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import pytest

_space: dict[str, object] = {}
exec(f"def _wide(call):\n    if call: return call()\n    {'='.join(f'x{i}' for i in range(65_000))}=0", _space)
_wide = _space["_wide"]


class Roomy:
    """Calls each test from there."""

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        test = pyfuncitem.obj
        pyfuncitem.obj = lambda **given: _wide(partial(test, **given))  # type: ignore[operator]
        try:
            return (yield)
        finally:
            pyfuncitem.obj = test
