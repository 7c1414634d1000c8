"""On a CPU a step's memory stays for the next one, goes back after a run, and is the user's to decide on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mstdistill.engine import kept_memory

LINUX = pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="glibc's malloc")
# Pages that a tensor of 36 MB (beyond glibc's own largest threshold) needs anew: within the block once memory has
# settled, after `give_back`, and after the block. The first few may each find the last one's place too small: the ends
# that alignment cuts off wait in the allocator's small bins, seven to a bin, before they join what is free.
PROGRAM = """
import resource, torch
from mstdistill.engine.kept_memory import give_back, kept

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(9_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with kept({wanted}):
    with kept():  # of a run within a run
        pass
    again = min(pages() for _ in range(50))
    give_back()
    later = pages()
print(again, later, pages())
"""


def pages(wanted: bool, **variables: str) -> list[int]:
    env = {name: value for name, value in os.environ.items() if name not in kept_memory._CHOSEN}
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(wanted=wanted)], env=env | variables, check=True,
                          capture_output=True, text=True)  # fmt: skip
    return [int(word) for word in done.stdout.split()]


@LINUX
def test_freed_memory_stays_within_the_block_and_goes_back_after_it() -> None:
    again, later, after = pages(wanted=True)
    assert 10 * again < min(later, after)


@LINUX
@pytest.mark.parametrize(("wanted", "variables"), [(False, {}), (True, {"MALLOC_MMAP_MAX_": "65536"})])
def test_unwanted_or_decided_already_nothing_is_kept(wanted: bool, variables: dict[str, str]) -> None:
    again, later, after = pages(wanted, **variables)
    assert 2 * again > max(later, after)


def test_another_systems_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    kept_memory._glibc.cache_clear()
    try:
        with kept_memory.kept():
            assert kept_memory._depth == 0
            kept_memory.give_back()
    finally:
        kept_memory._glibc.cache_clear()
