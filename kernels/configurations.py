"""Every configuration that a launch can choose, as the compiler sees it: what `aot.py` builds without a GPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .tiles import choose, names_of

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# Stands for GPUs with little shared memory; the mask's attention has tiles of its own for them.
SMALL = "sm_89"
# As many classes, pixels or numbers a row as take whole tiles.
WIDEST = 1 << 17


@dataclass(frozen=True)
class Build:
    """One kernel with everything that the compiler sees of a launch; "i32:16" is a multiple of 16, "one" is 1."""

    file: str
    kernel: str
    about: str
    types: dict[str, str]
    constants: dict[str, Any]
    warps: int
    target: str
    stages: int = 3

    @property
    def name(self) -> str:
        """Unique within a table of builds."""
        return f"{self.file}.{self.kernel} {self.about} {self.target}"


def route_builds(target: str) -> Iterator[Build]:
    """Of routing."""
    from .jit import router

    where, seen = names_of(target), set()
    for rows in (1, 1 << 20):
        for mp in (2**n for n in range(1, 11)):
            r, mp, per_block, blocks, warps = router.tiles(rows, mp, where)
            if (r, mp) in seen:
                continue
            seen.add((r, mp))
            about = f"R={r} MP={mp}"
            ints = {**dict.fromkeys(("B", "M", "stride_b"), "i32"), "stride_m": "one"}
            parts = {"peak_ptr": "*fp32", "sum_ptr": "*fp32", "count_ptr": "*i32", "part_ptr": "*fp32",
                     "log_sums_ptr": "*fp32", "counts_ptr": "*i64", "loss_ptr": "*fp32"}  # fmt: skip
            shared = {"MP": mp, "MODE": 2, "LOWEST": -1e30, "ACC": "fp32"}
            names = ("log_probs_ptr", "log_sums_ptr", "weight_ptr", "outer_ptr", "sums_ptr", "loss_ptr")
            backward = dict.fromkeys(names, "*fp32")
            for masked, kind in ((False, ""), (True, " masked")):
                mask = {"seen_ptr": "*u8"} if masked else {}
                both = {"R": r, "ALIGN": math.gcd(mp, 16), "WEIGHTED": True, **shared, "MASKED": masked,
                        "MODE": 0 if masked else 2}  # fmt: skip
                yield Build("router", "route_forward", f"{about} {'alone' if blocks == 1 else 'of several'}{kind}", {
                    "logits_ptr": "*bf16", "weight_ptr": "*fp32", **mask, "log_probs_ptr": "*fp32",
                    "indices_ptr": "*i64", **parts, **ints,
                }, {"K": min(16, mp), "TILES": per_block, "ALONE": blocks == 1, **both,
                    **({} if masked else {"seen_ptr": None})}, warps, target)  # fmt: skip
                yield Build("router", "route_backward", f"{about}{kind}", {**backward, "grad_ptr": "*bf16", **ints},
                            {"OUTER": True, "SUMS": True, **both}, warps, target)  # fmt: skip
            if blocks > 1:
                yield Build("router", "route_sums", about, {**parts, "M": "i32", "blocks": "i32"},
                            {"NB": max(1, min(512, 4096 // mp)), **shared}, warps, target)  # fmt: skip


_KD_POINTERS = {
    "student_ptr": "*bf16", "teacher_ptr": "*fp16", "rows_ptr": "*i64", "indices_ptr": "*i64", "weights_ptr": "*fp32",
    "label_ptr": "*i64", "kd_scale_ptr": "*fp32", "task_scale_ptr": "*fp32", "loss_ptr": "*fp32", "kd_ptr": "*fp32",
    "task_ptr": "*fp32", "grad_ptr": "*bf16", "each_ptr": "*fp32", "reference_ptr": "*fp32",
}  # fmt: skip
_PLAIN = {"ROWS": False, "INDICES": True, "WEIGHTS": False, "LABEL": False, "KD_SCALE": False, "TASK_SCALE": False,
          "MIXTURE": False, "GRAD": True, "EACH": False, "REFERENCE": False}  # fmt: skip
_CACHED = {**_PLAIN, "ROWS": True, "LABEL": True, "KD_SCALE": True, "TASK_SCALE": True}
# name -> (flags, K): the plain loss, stage 3 from the cache, weights that learn, a mixture whose weights learn
_KD_FORMS: dict[str, tuple[dict[str, bool], int]] = {
    "k=1": (_PLAIN, 1),
    "k=4 cached, labelled": (_CACHED, 4),
    "k=4 weights learn": ({**_CACHED, "WEIGHTS": True, "EACH": True}, 4),
    "M=8 mixture learns": (
        {**_CACHED, "INDICES": False, "WEIGHTS": True, "MIXTURE": True, "REFERENCE": True}, 8,
    ),
    "pair": ({**_PLAIN, "INDICES": False, "REFERENCE": True, "KD_SCALE": False}, 1),
}  # fmt: skip


def kd_builds(target: str) -> Iterator[Build]:
    """Of distillation."""
    from .jit import kd_rows

    device = names_of(target)
    strides = dict.fromkeys(("student_b", "teacher_n", "teacher_m"), "i32")
    last = {"student_c": "one", "teacher_c": "one"}
    float32 = {"student_ptr": "*fp32", "teacher_ptr": "*fp32", "grad_ptr": "*fp32"}
    for form, (flags, k) in _KD_FORMS.items():
        kind = "float" if form == "k=1" else "half"
        for cp in (2**n for n in range(1, kd_rows.LARGEST.bit_length())):
            r, cp, warps = kd_rows.tiles(cp, kind, device)
            yield Build("kd_rows", "kd_rows", f"{form} R={r} C={cp}", {
                **_KD_POINTERS, **(float32 if form == "k=1" else {}),
                **dict.fromkeys(("B", "N", "M", "C"), "i32"), **strides, **last, "ignore": "i32",
            }, {"T": 4.0, "K": k, "R": r, "CP": cp, "ALIGN": math.gcd(cp, 16), **flags, "ACC": "fp32"},
                warps, target)  # fmt: skip
        sizes = {**dict.fromkeys(("N", "M", "C"), "i32"), **strides, **last}
        heads = {name: _KD_POINTERS[name] for name in ("student_ptr", "teacher_ptr", "rows_ptr", "indices_ptr",
                                                       "weights_ptr")}  # fmt: skip
        where = {name: flags[name] for name in ("ROWS", "INDICES", "WEIGHTS", "MIXTURE")} | {"K": k}
        tail = {"slice_width": "i32", "S": "i32"}
        choice = choose("kd_wide", WIDEST, "half", device)
        constants, warps = {"T": 4.0, "BC": choice["block"], "ALIGN": 8, "ACC": "fp32"}, choice["warps"]
        yield Build("kd_wide", "kd_slices", form, {**heads, "stats_ptr": "*fp32", **sizes, **tail},
                    {**constants, **where}, warps, target)  # fmt: skip
        for sliced in (False, True):
            yield Build("kd_wide", "kd_wide", f"{form} {'sliced' if sliced else 'whole rows'}", {
                **_KD_POINTERS, "stats_ptr": "*fp32", **sizes, "ignore": "i32", **tail,
            }, {**constants, "K": k, "SP": 64 if sliced else 1, "SLICED": sliced,
                **{**flags, "REFERENCE": False}}, warps, target)  # fmt: skip
        if flags["REFERENCE"]:
            yield Build("kd_wide", "kd_wide_reference", form, {
                **heads, "kd_scale_ptr": "*fp32", "kd_ptr": "*fp32", "stats_ptr": "*fp32", "reference_ptr": "*fp32",
                **sizes, **tail,
            }, {**constants, **where, "SP": 64, "KD_SCALE": flags["KD_SCALE"]}, warps, target)  # fmt: skip
        choice = choose("kd_dense", WIDEST, kind, device)
        for pb in (16, 128, choice["pixels"]):
            yield Build("kd_dense", "kd_dense", f"{form} PB={pb}", {
                **_KD_POINTERS, "stats_ptr": "*fp32", **dict.fromkeys(("N", "M", "C", "P"), "i32"), **strides,
                "student_c": "i32", "teacher_c": "i32", "student_p": "one", "teacher_p": "one", "ignore": "i32",
            }, {"T": 4.0, "K": k, "PB": pb, "ALIGN": 16, **flags, "ACC": "fp32"},
                choice["warps"], target)  # fmt: skip
    choice = choose("scale_rows", WIDEST, where=device)
    yield Build("kd", "scale_rows", "", {"x_ptr": "*fp32", "factor_ptr": "*fp32", "width": "i32", "per_row": "i32",
                                       "stride": "i32"},
                {"BLOCK": choice["block"], "ALIGN": 8, "ACC": "fp32"}, choice["warps"], target)  # fmt: skip


def bernoulli_builds(target: str) -> Iterator[Build]:
    """Of distillation of several classes at once."""
    from .jit import bernoulli

    pointers = {**_KD_POINTERS, "class_weights_ptr": "*fp32"}
    sizes = {**dict.fromkeys(("B", "N", "M", "C", "student_b", "teacher_n", "teacher_m"), "i32"), "student_c": "one",
             "teacher_c": "one"}  # fmt: skip
    for form, (flags, k) in _KD_FORMS.items():
        for cp in (2**n for n in range(1, bernoulli.LARGEST.bit_length())):
            r, cp, warps = bernoulli.tiles(cp, "half", names_of(target))
            yield Build("bernoulli", "bernoulli", f"{form} R={r} C={cp}", {**pointers, **sizes}, {
                "T": 4.0, "K": k, "R": r, "CP": cp, "ALIGN": math.gcd(cp, 16), **flags,
                "CLASS_WEIGHTS": flags["LABEL"], "ACC": "fp32",
            }, warps, target)  # fmt: skip


def attend_builds(target: str) -> Iterator[Build]:
    """Of the mask's attention."""
    import torch

    from .jit import mask

    heads = 3
    widths = sorted({mask.padded_head(width) for width in range(1, mask.MAX_HEAD + 1)})
    kinds = {"tf32": ("fp32", torch.float32, "tf32"), "ieee": ("fp32", torch.float32, "ieee"),
             "bf16": ("bf16", torch.bfloat16, "tf32")}  # fmt: skip
    for (kind, (element, dtype, precision)), width in itertools.product(kinds.items(), widths):
        d0, d1, d2 = mask.head_parts(width)
        for kernel in ("attend", "attend_backward_rows", "attend_backward_columns"):
            backward = kernel != "attend"
            bm, bn, warps, stages = mask.tiles(dtype, width, precision, backward, names_of(target, target == SMALL))
            types = {"packed_ptr": f"*{element}", "y_ptr": "*fp32", "lse_ptr": "*fp32"}
            if backward:
                types |= {"delta_ptr": "*fp32", "grad_ptr": f"*{element}"}
            types |= {"d": "i32", "stride_b": "i32:16", "stride_d": "i32:16"}
            constants = {"H": heads, "DH": width, "D0": d0, "D1": d1, "D2": d2, "BM": bm, "BN": bn,
                         "PRECISION": precision, "UPCAST": False, "ACC": "fp32"}  # fmt: skip
            if backward:
                types |= {"delta_b": "i32", "delta_h": "i32", "delta_d": "one"}
                constants["W"] = 2 * heads * width + 16
            yield Build("mask", kernel, f"{kind} dh={width}", types, constants, warps, target, stages)


def apply_builds(target: str) -> Iterator[Build]:
    """Of the mask's last step."""
    from .jit import apply_mask

    heads = 3
    layouts = {"vectors": (596, 1, True), "maps": (512, 1200, False), "small maps": (512, 49, False),
               "tokens": (768, 197, True)}  # fmt: skip
    for layout, (d, positions, wide) in layouts.items():
        bd, bp, warps = apply_mask.apply_tiles(d, positions, wide, names_of(target))
        tile = {"BD": bd, "BP": bp, "ALIGN": math.gcd(16, d if wide else positions), "WIDE": wide}
        lane = "d" if wide else "p"

        def strides(*tensors: str, lane: str = lane) -> dict[str, str]:
            return {f"{x}_{axis}": "one" if axis == lane else "i32" for x in tensors for axis in "bdp"}

        yield Build("apply_mask", "apply_mask", layout, {
            "y_ptr": "*fp32", "constant_ptr": "*fp32", "feature_ptr": "*bf16", "out_ptr": "*bf16", "mask_ptr": "*fp32",
            **dict.fromkeys(("d", "P", "per_group"), "i32"), **strides("feature", "out"),
        }, {"H": heads, **tile, "ACC": "fp32"}, warps, target)  # fmt: skip
        yield Build("apply_mask", "apply_mask_backward", layout, {
            "mask_ptr": "*fp32", "feature_ptr": "*bf16", "outer_ptr": "*bf16", "extra_ptr": "*fp32",
            "delta_ptr": "*fp32", "grad_ptr": "*bf16", "d": "i32", "P": "i32",
            **strides("feature", "outer", "grad"),
        }, {**tile, "EXTRA": True, "GRAD": True, "ACC": "fp32"}, warps, target)  # fmt: skip


def builds() -> list[Build]:
    """Every configuration that a launch can choose, at its most demanding flags."""
    families = (route_builds, kd_builds, bernoulli_builds, attend_builds, apply_builds)
    found = [build for target in TARGETS for family in families for build in family(target)]
    return [*found, *attend_builds(SMALL)]
