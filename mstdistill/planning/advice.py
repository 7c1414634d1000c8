"""A plan as a command: what to type to launch it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from .plan import Candidate, Plan


def train_words(plan: Plan, recipe: str, overrides: Sequence[str], presets: Sequence[str]) -> list[str]:
    """`train RECIPE ...` with the batch that was chosen."""
    chosen = plan.chosen
    words = ["train", recipe, *overrides]
    for preset in presets:
        words += ["--preset", preset]
    return words + (_batch_words(plan, chosen) if chosen is not None else [])


def _batch_words(plan: Plan, chosen: Candidate) -> list[str]:
    """Settings of the batch, those of stages with their own included; later ones win over what was given."""
    recipe = plan.request.recipe
    words = [f"batch_size={max(1, recipe.batch_size // chosen.cut)}"]
    if chosen.cut > 1:
        words.append(f"accumulate={recipe.accumulate * chosen.cut}")
        for name in ("cotrain", "rounds", "specialise", "distill"):
            own = getattr(recipe, name).batch_size
            if own is not None:
                words.append(f"{name}.batch_size={max(1, own // chosen.cut)}")
    return words


def commands(plan: Plan, recipe: str, overrides: Sequence[str] = (), presets: Sequence[str] = ()) -> list[str]:
    """What to type, here or on every node, and for several nodes the line for SLURM; nothing where nothing fits."""
    if plan.chosen is None:
        return []
    request, engine = plan.request, plan.chosen.engine
    words = shlex.join(train_words(plan, recipe, overrides, presets))
    if plan.machine.is_cpu:
        return [f"mstdistill {words}" if request.world == 1 else f"launch_configs/multi_cpu.sh {request.world} {words}"]
    config = engine.config(request.nodes)
    launch = f"accelerate launch --config_file {config}"
    if request.nodes == 1:
        number = f" --num_processes {request.world}" if request.world > 1 or engine.offload else ""
        return [f"{launch}{number} -m mstdistill {words}"]
    # every node sees the run's folder
    shared = f"{words} --out /shared/runs/{request.recipe.task}"
    return [
        f"{launch} --num_machines {request.nodes} --num_processes {request.world} --machine_rank RANK "
        f"--main_process_ip FIRST_NODE -m mstdistill {shared}",
        f"CONFIG={config} sbatch --nodes={request.nodes} --gpus-per-node={request.gpus} scripts/train_slurm.sh "
        f"{shared}",
    ]
