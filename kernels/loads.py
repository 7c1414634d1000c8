"""How wide a kernel's loads and stores are, read from what the compiler makes, without a GPU.

    python -m mstdistill.kernels.loads "k=1 whole" apply_mask

A kernel that waits for memory wants 16 bytes an instruction and thread: with 2 bytes it issues eight times as many, and
the load units are busy before the memory is. The compiler takes wide ones only where it can tell that sizes and strides
are multiples (`ALIGN`, see `jit/base.py`).
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter

from .aot import Build, builds, compiled

# NVIDIA's alone: their texts name each access's width.
TARGET = "sm_90"
_ACCESS = re.compile(r"\b(ld|st)\.global([\w.:]*)")


def accesses(ptx: str) -> dict[str, dict[int, int]]:
    """Of global loads ("ld") and stores ("st"): bytes a thread -> how many instructions."""
    found: dict[str, Counter[int]] = {"ld": Counter(), "st": Counter()}
    for kind, suffix in _ACCESS.findall(ptx):
        parts = suffix.split(".")
        vector = next((int(part[1:]) for part in parts if re.fullmatch(r"v\d", part)), 1)
        found[kind][vector * int(parts[-1][1:]) // 8] += 1
    return {kind: dict(sorted(counts.items())) for kind, counts in found.items()}


def share_of(counts: dict[int, int], width: int) -> float:
    """Part of the bytes that come in accesses of at least `width` bytes."""
    total = sum(size * number for size, number in counts.items())
    return sum(size * number for size, number in counts.items() if size >= width) / max(1, total)


def look(build: Build) -> dict[str, dict[int, int]]:
    """`accesses` of a build."""
    return accesses(compiled(build, TARGET).asm["ptx"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="builds whose name holds one of these; none: all of them")
    options = parser.parse_args()
    for build in builds():
        name = build.name(TARGET)
        if TARGET in build.targets and (not options.words or any(word in name for word in options.words)):
            print(json.dumps({"build": name, **look(build)}), flush=True)


if __name__ == "__main__":
    main()
