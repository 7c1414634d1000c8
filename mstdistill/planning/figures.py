"""A plan as plain numbers, for a file; what is shown is made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from . import engines, machines
from .advice import commands
from .plan import HEADROOM, Candidate, Plan
from .profile import StageProfile


def figures_of(plan: Plan, recipe: str, overrides: Sequence[str] = (), presets: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that a plan found; bytes, seconds, FLOPs."""
    request, subject, chosen = plan.request, plan.subject, plan.chosen
    usable = (1 - HEADROOM) * plan.machine.memory
    shown = chosen or min(plan.candidates, key=lambda one: (bool(one.why_not), one.largest))
    return {
        "recipe": {
            "name": recipe, "overrides": list(overrides), "presets": list(presets), "task": request.recipe.task,
            "target": request.recipe.target, "method": request.recipe.method, "precision": request.recipe.precision,
            "batch_size": request.recipe.batch_size, "accumulate": request.recipe.accumulate,
        },
        "instances": {**subject.counts, "from": subject.source},
        "machine": {**asdict(plan.machine), "usable": usable, "headroom": HEADROOM},
        "gpus": request.gpus,
        "nodes": request.nodes,
        "processes": request.world,
        "global_batch": {name: stage["batch"] * stage["accumulate"] * request.world
                         for name, stage in shown.stages.items()},
        "measured": {
            "on": "fake tensors" if all(profile.fake for profile in plan.profiles) else "real tensors, small batches",
            "stages": {profile.name: _measured(profile) for profile in plan.profiles},
        },
        "engines": {one.engine.name: _engine(one, plan) for one in plan.candidates},
        "chosen": None if chosen is None else {**_engine(chosen, plan), "name": chosen.engine.name, "cut": chosen.cut,
                                               "config": chosen.engine.config(request.nodes)},
        "shown": shown.engine.name,
        "commands": commands(plan, recipe, overrides, presets),
        "assumptions": {
            "link_efficiency": machines.LINK_EFFICIENCY, "node_latency": machines.NODE_LATENCY,
            "network_latency": machines.NETWORK_LATENCY, "nccl_bytes": machines.NCCL_BYTES,
            "zero_bucket_elements": engines.ZERO_BUCKET, "zero_live_elements": engines.ZERO_LIVE,
            "host_adam_bytes_per_second": engines.HOST_ADAM,
        },
    }  # fmt: skip


def _engine(one: Candidate, plan: Plan) -> dict[str, Any]:
    return {
        "fits": one.fits(plan.machine),
        "reason": plan.reasons.get(one.engine.name, ""),
        "largest": one.largest,
        "fullest": one.fullest,
        "seconds": one.seconds,
        "stages": one.stages,
    }


def _measured(profile: StageProfile) -> dict[str, Any]:
    """What a stage's step was measured to need, and the line through two batch sizes."""
    small, large = profile.sizes
    span = large.batch - small.batch

    def line(name: str) -> dict[str, float]:
        a, b = float(getattr(small, name)), float(getattr(large, name))
        each = (b - a) / span
        return {"fixed": a - each * small.batch, "each": each, "at": a}

    return {
        "batch": small.batch,
        "second_batch": large.batch,
        "learning_parameters": profile.learning,
        "weights": profile.learning_bytes,
        "optimiser": profile.optimiser,
        "other_networks": profile.beside,
        "flops": line("flops"),
        "bytes": line("bytes"),
        "saved": line("saved"),
        "operators": small.operators,
        "modalities": list(profile.loaded),
        "instances": profile.instances,
        "tables": [
            {"name": table.name, "shape": list(table.shape), "dtype": table.dtype, "bytes": table.size,
             "resident": table.resident} for table in profile.tables
        ],
    }  # fmt: skip
