"""A plan: what each stage needs under every way to launch, and the simplest way that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..config import Recipe
from ..engine.kept_memory import kept
from ..errors import ConfigError
from .engines import DDP, ENGINES, SINGLE, Engine, Setting, exchange, host_memory, memory
from .machines import Machine, find_machine
from .profile import StageProfile
from .rehearsal import rehearse
from .roofline import build_seconds, step_time, steps_per_epoch
from .subject import Subject, subject_of

# The part of a GPU's memory that a plan leaves free: fragments, and what no account foresees.
HEADROOM = 0.1


@dataclass(frozen=True)
class Request:
    """What is asked for: a recipe, and machines to run it on.

    Attributes:
        gpus: of a node; nodes: how many.
    """

    recipe: Recipe
    gpu: str
    gpus: int = 1
    nodes: int = 1

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.gpus * self.nodes


@dataclass(frozen=True)
class Candidate:
    """A way to launch with the batch cut into `cut` parts that are accumulated.

    Attributes:
        stages: figures of each stage, by name.
        largest: bytes of the fullest stage; seconds: of the whole run.
        why_not: why it can't be launched so; empty: it can.
    """

    engine: Engine
    cut: int
    stages: dict[str, dict[str, Any]]
    largest: float
    fullest: str
    seconds: float
    why_not: str = ""

    def fits(self, machine: Machine) -> bool:
        """Whether it stays below the part of the memory that is counted on."""
        return not self.why_not and self.largest <= (1 - HEADROOM) * machine.memory


@dataclass(frozen=True)
class Plan:
    """Everything that was found.

    Attributes:
        candidates: every engine with the whole batch; chosen: one of them, or one with a smaller batch, or None.
        reasons: why each of the others was not chosen, by the engine's name.
    """

    request: Request
    machine: Machine
    subject: Subject
    profiles: Sequence[StageProfile]
    candidates: Sequence[Candidate]
    chosen: Candidate | None
    reasons: dict[str, str]


def make_plan(request: Request) -> Plan:
    """Measure the recipe's stages and weigh every way to launch.

    Raises:
        ConfigError: an unknown GPU, or a recipe that a run would refuse.
    """
    with kept(request.gpu == "cpu" and request.recipe.run.keep_memory):  # operators are timed as a run has them
        machine = find_machine(request.gpu, request.gpus)
        subject = subject_of(request.recipe)
        return weigh(request, machine, subject, rehearse(subject, machine.is_cpu))


def weigh(request: Request, machine: Machine, subject: Subject, profiles: Sequence[StageProfile]) -> Plan:
    """A plan from profiles."""
    if request.gpus < 1 or request.nodes < 1:
        raise ConfigError(f"--gpus {request.gpus} --nodes {request.nodes}: both must be at least 1")
    if machine.is_cpu and request.nodes > 1:
        raise ConfigError("--gpu cpu: several nodes without GPUs aren't planned; leave out --nodes")
    candidates = [_candidate(engine, 1, request, machine, profiles) for engine in ENGINES]
    chosen = _choose(request, machine, profiles, candidates)
    reasons = {one.engine.name: _reason(one, chosen, machine) for one in candidates if chosen is None
               or one.engine is not chosen.engine}  # fmt: skip
    return Plan(request, machine, subject, profiles, candidates, chosen, reasons)


def setting_of(request: Request, machine: Machine, profile: StageProfile, cut: int) -> Setting:
    """What a stage runs in, its batch cut into so many parts."""
    batch = max(1, profile.batch // cut)
    return Setting(machine, request.world, request.nodes, request.recipe.precision, batch, profile.accumulate * cut,
                   request.recipe.run.resident_gb * 1e9)  # fmt: skip


def _choose(
    request: Request, machine: Machine, profiles: Sequence[StageProfile], candidates: Sequence[Candidate]
) -> Candidate | None:
    """The simplest that fits, the faster of equally simple ones; with a smaller batch where none does."""
    cut, smallest = 1, min(profile.batch for profile in profiles)
    while cut <= smallest:
        tried = candidates if cut == 1 else [_candidate(e, cut, request, machine, profiles) for e in ENGINES]
        fitting = [one for one in tried if one.fits(machine)]
        if fitting:
            return min(fitting, key=lambda one: (one.engine.level, one.seconds))
        cut *= 2
    return None


def _candidate(
    engine: Engine, cut: int, request: Request, machine: Machine, profiles: Sequence[StageProfile]
) -> Candidate:
    stages: dict[str, dict[str, Any]] = {}
    for profile in profiles:
        setting = setting_of(request, machine, profile, cut)
        needs = memory(engine, profile, setting)
        sent = exchange(engine, profile, setting)
        time = step_time(engine, profile, setting, request.recipe.tf32, needs["data"] > 0)
        steps = steps_per_epoch(profile, setting)
        tables = {table.name: build_seconds(table, setting, request.recipe.tf32) for table in profile.tables}
        stages[profile.name] = {
            "batch": setting.batch,
            "accumulate": setting.accumulate,
            "memory": needs,
            "host_memory": host_memory(engine, profile, setting),
            "exchange": asdict(sent),
            "step": {**asdict(time), "total": time.total},
            "steps_per_epoch": steps,
            "epochs": profile.epochs,
            "table_seconds": tables,
            "seconds": time.total * steps * profile.epochs + sum(tables.values()),
        }
    fullest = max(stages, key=lambda name: stages[name]["memory"]["total"])
    seconds = sum(stage["seconds"] for stage in stages.values())
    largest = stages[fullest]["memory"]["total"]
    return Candidate(engine, cut, stages, largest, fullest, seconds, _impossible(engine, request, machine))


def _impossible(engine: Engine, request: Request, machine: Machine) -> str:
    """Why an engine can't do what is asked for; empty: it can."""
    if request.world > 1 and engine is SINGLE:
        return "would leave all but one idle"
    if machine.is_cpu and engine not in (SINGLE, DDP):
        return "saves nothing where all processes share one memory"
    if request.world == 1 and engine is not SINGLE and not engine.offload:
        return "one process has nobody to share with"
    if request.recipe.precision == "fp16" and machine.is_cpu:
        return "precision=fp16 needs a GPU"
    return ""


def _reason(one: Candidate, chosen: Candidate | None, machine: Machine) -> str:
    if one.why_not:
        return one.why_not
    if not one.fits(machine):
        return f"{one.fullest} needs more than {100 * (1 - HEADROOM):.0f} % of the memory"
    if chosen is None or one.engine.level < chosen.engine.level:
        return ""
    if one.engine.level > chosen.engine.level:
        return f"fits too; {chosen.engine.name} is simpler"
    return f"fits too; {chosen.engine.name} is faster"
