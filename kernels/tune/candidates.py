"""What may be chosen: for some sizes of each kernel, tiles and warps whose builds keep the limits and spill nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from .. import aot
from ..configurations import WIDEST, Build, apply_builds, attend_builds, bernoulli_builds, kd_builds, route_builds
from ..loads import look
from ..tiles import choose, trying

# Others are built for where the search runs.
TARGETS = ("sm_80", "sm_90")
# The form that stage 3 takes: four teachers from a cache, with the task loss.
_FORM = "k=4 cached, labelled"


@dataclass(frozen=True)
class Candidate:
    """A choice for one size of one kernel.

    Attributes:
        key: kernel and kind, as in the launch table.
        size: the class of shapes; of kernels that know none, what takes whole tiles.
        choice: fields of `tiles.KERNELS`.
        elements: that a block has in hand at once.
    """

    key: str
    size: int
    choice: Mapping[str, int]
    elements: int

    @property
    def group(self) -> str:
        """What it competes in."""
        return self.key if self.size == WIDEST else f"{self.key} {self.size}"

    @property
    def name(self) -> str:
        """Unique."""
        return f"{self.group}: {' '.join(f'{name}={value}' for name, value in self.choice.items())}"

    @property
    def kernel(self) -> str:
        """Without the kind."""
        return self.key.partition(" ")[0]

    @property
    def kind(self) -> str:
        """Of types or layouts, or an empty string."""
        return self.key.partition(" ")[2]


def candidates() -> Iterator[Candidate]:
    """All of them: 4 to 32 elements a thread."""
    yield from _rows("route", (4, 64, 128), (1024, 2048, 4096), 256)
    yield from _rows("kd_rows half", (16, 128, 1024), (1024, 2048, 4096), 64)
    yield from _rows("kd_rows float", (16, 256), (1024, 2048, 4096), 64)
    yield from _rows("bernoulli half", (32, 1024), (1024, 2048, 4096), 64)
    for key, field, blocks in (("kd_wide half", "block", (1024, 2048, 4096, 8192)),
                               ("kd_dense half", "pixels", (256, 512, 1024, 2048)),
                               ("scale_rows", "block", (1024, 2048, 4096, 8192))):  # fmt: skip
        for block, warps in product(blocks, (4, 8, 16)):
            if 2 <= block // (32 * warps) <= 32:
                yield Candidate(key, WIDEST, {field: block, "warps": warps}, block)
    layouts = {"vectors": ((256, 512, 1024), (1,)), "tokens": ((64, 128, 256), (8, 16, 32)),
               "maps": ((1, 2, 4), (512, 1024, 2048))}  # fmt: skip
    for layout, (features, positions) in layouts.items():
        for d, p, warps in product(features, positions, (4, 8)):
            if layout == "vectors" or 1024 <= d * p <= 4096:
                choice = {"features": d, "positions": p, "warps": warps}
                yield Candidate(f"apply_mask {layout}", WIDEST, choice, d * p)
    for kind, size in product(("tf32", "bf16"), (64, 112)):
        for key, rows in (("attend", (64, 128)), ("attend_backward", (32, 64))):
            for bm, bn, warps in product(rows, (32, 64), (4, 8)):
                choice = {"rows": bm, "columns": bn, "warps": warps, "stages": 2}
                yield Candidate(f"{key} {kind}", size, choice, bm * bn)


def _rows(key: str, sizes: Iterable[int], tiles: Iterable[int], most: int) -> Iterator[Candidate]:
    for size, elements, warps in product(sizes, tiles, (2, 4, 8, 16)):
        if size <= elements <= most * size and 4 <= elements // (32 * warps) <= 32:
            yield Candidate(key, size, {"rows": elements // size, "warps": warps}, elements)


def standing(candidate: Candidate, where: tuple[str, ...]) -> dict[str, int]:
    """What the launch table chooses in a candidate's place."""
    choice = choose(candidate.kernel, candidate.size, candidate.kind, where)
    return {name: value for name, value in choice.items() if name != "to"}


def builds_of(candidate: Candidate, target: str) -> list[Build]:
    """What a launch with this choice runs."""
    families = {"route": route_builds, "apply_mask": apply_builds, "attend": attend_builds,
                "attend_backward": attend_builds, "bernoulli": bernoulli_builds}  # fmt: skip
    with trying(candidate.key, dict(candidate.choice)):
        found = [build for build in families.get(candidate.kernel, kd_builds)(target) if _runs(candidate, build)]
    return [replace(build, about=f"{candidate.name} | {build.about}") for build in found]


def _runs(candidate: Candidate, build: Build) -> bool:
    """Whether a build is one of the candidate's."""
    constants, size = build.constants, candidate.size
    match candidate.kernel:
        case "route":  # the second stage knows no rows
            rows = candidate.choice["rows"]
            return constants["MP"] == size and constants.get("R", rows) == rows
        case "kd_rows":
            form = "k=1 " if candidate.kind == "float" else _FORM
            return build.file == "kd_rows" and build.about.startswith(form) and constants["CP"] == size
        case "bernoulli":
            return build.about.startswith(_FORM) and constants["CP"] == size
        case "kd_wide":
            return build.file == "kd_wide" and build.about in (_FORM, f"{_FORM} whole rows")
        case "kd_dense":
            return build.about == f"{_FORM} PB={candidate.choice['pixels']}"
        case "scale_rows":
            return build.kernel == "scale_rows"
        case "apply_mask":
            return build.about == candidate.kind
    forward = candidate.kernel == "attend"
    return (build.kernel == "attend") == forward and build.about == f"{candidate.kind} dh={size}"


def facts_of(build: Build) -> dict[str, Any]:
    """What a build takes and what it reads at once."""
    return {**aot.compile_for(build), **look(build)}


def refusal(builds: Iterable[Build], table: Mapping[str, Mapping[str, Any]]) -> str:
    """Why a candidate with these builds can't be chosen, or an empty string: it spills, or takes more than there is."""
    for build in builds:
        found = table.get(build.name)
        if found is None or "error" in found:
            return "not built" if found is None else str(found["error"])
        if found["stack"]:
            return f"{build.kernel} spills {found['stack']} bytes"
        wrong = aot.faults(build.name, dict(found))
        if wrong:
            return wrong[0].removeprefix(f"{build.name}: ")
    return ""
