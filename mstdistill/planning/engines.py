"""Ways to launch: what each keeps on a GPU, and what it sends round in an optimiser step.

    bytes sent a process, n processes, f = (n - 1) / n, G gradients, P weights, a micro-batches:
    DDP          2 f G                ring all-reduce, once a step
    ZeRO-1       f G + f P            reduce-scatter, then all-gather of the stepped weights
    ZeRO-2       a f G + f P          gradients are scattered after each micro-batch
    ZeRO-3       a (2 f P + f G)      weights are gathered for the forward and again for the backward pass
    FSDP2        a (2 f P + f G)

(Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", SC 2020, section 7.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .ledger import Moment
from .machines import LINK_EFFICIENCY, NCCL_BYTES, NETWORK_LATENCY, NODE_LATENCY, Machine
from .profile import StageProfile

# DeepSpeed's defaults, which the files in launch_configs/ leave as they are: elements of its bucket of gradients, which
# it allocates whole, and of gathered weights that ZeRO-3 keeps before it lets any go.
ZERO_BUCKET, ZERO_LIVE = 500_000_000, 1_000_000_000
# DDP's default bucket, bytes.
DDP_BUCKET = 25 * 2**20
# What the host's Adam reads and writes a second over all its cores; an assumption.
HOST_ADAM = 100e9


@dataclass(frozen=True)
class Engine:
    """A way to launch.

    Attributes:
        file: under launch_configs/; several: for several nodes.
        level: how simple it is to run and to debug, from 0.
        optimiser, gradients, weights: whether these lie in shards.
        offload: weights and the optimiser's state on the host.
    """

    name: str
    file: str
    level: int
    optimiser: bool = False
    gradients: bool = False
    weights: bool = False
    offload: bool = False
    several: str = ""

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed runs it."""
        return self.name.startswith("ZeRO")

    @property
    def plain(self) -> bool:
        """Whether every process holds everything."""
        return not self.optimiser

    def config(self, nodes: int) -> str:
        """Path of its launch config."""
        return f"launch_configs/{self.several if nodes > 1 and self.several else self.file}"


SINGLE = Engine("single process", "single_process.yaml", 0)
DDP = Engine("DDP", "multi_gpu.yaml", 1, several="multi_node.yaml")
ENGINES = (
    SINGLE,
    DDP,
    Engine("ZeRO-1", "deepspeed_zero1.yaml", 2, optimiser=True),
    Engine("ZeRO-2", "deepspeed_zero2.yaml", 2, optimiser=True, gradients=True),
    Engine("FSDP2", "fsdp2.yaml", 3, optimiser=True, gradients=True, weights=True),
    Engine("ZeRO-3", "deepspeed_zero3.yaml", 3, optimiser=True, gradients=True, weights=True),
    Engine("ZeRO-3, offload", "deepspeed_zero3_offload.yaml", 4, True, True, True, offload=True),
)


@dataclass(frozen=True)
class Setting:
    """What a stage runs in.

    Attributes:
        world: processes in all; nodes: machines that they are on.
        precision: the recipe's.
        batch, accumulate: micro-batch of a process, and how many make a step.
        resident: largest bytes of training data held on a GPU.
    """

    machine: Machine
    world: int
    nodes: int
    precision: str
    batch: int
    accumulate: int
    resident: float


def memory(engine: Engine, profile: StageProfile, setting: Setting) -> dict[str, float]:
    """Bytes of a process on its device at the fullest moment of a step, by purpose; `total` is their sum."""
    machine, n = setting.machine, setting.world
    learning = profile.learning_bytes
    # DeepSpeed casts the module itself; elsewhere autocast casts what an operator reads
    used = learning / 2 if engine.deepspeed and setting.precision != "no" else learning
    share = 1 / n
    gradients, moment = _fullest(engine, profile, setting, used)
    terms = {
        "weights": used,
        "other networks": profile.beside,
        "gradients": gradients,
        "optimiser": profile.optimiser,
        "activations": moment.saved,
        "batch": moment.batch,
        "workspace": moment.rest,
        "exchange": 0.0,
        "data": _data(profile, setting),
        "cache": sum(table.size for table in profile.tables if table.resident),
        "runtime": machine.context + (NCCL_BYTES if n > 1 and not machine.is_cpu else 0),
    }
    if machine.is_cpu:
        terms |= {"best epoch": profile.best, "checkpoint": profile.checkpoint}
    if engine is DDP:
        terms["exchange"] = learning  # buckets, beside the gradients themselves
    if not engine.plain:
        if machine.is_cpu:
            terms["other networks"] += learning  # the stage's own module, of which the engine has a copy, waits there
        master = learning if engine.deepspeed else 0
        terms["optimiser"] = 0.0 if engine.offload else (profile.optimiser + master) * share
    if engine.deepspeed:
        terms["exchange"] = ZERO_BUCKET * used / max(1, profile.learning)
    if engine.weights:
        gathered = min(1.0, ZERO_LIVE / max(1, profile.learning)) if engine.deepspeed else _at_once(profile)
        terms["weights"] = used * gathered + (0.0 if engine.offload else used * share)
    return {**terms, "total": sum(terms.values())}


def _fullest(engine: Engine, profile: StageProfile, setting: Setting, used: float) -> tuple[float, Moment]:
    """Bytes of gradients, and what else the step holds, when both together are the most."""
    learning = profile.learning_bytes
    phases = profile.at(setting.batch).phases
    moments = [moment for phase in phases.values() for moment in (phase.fullest, phase.fullest_besides)]
    if engine.deepspeed:  # DeepSpeed's own buffers hold them throughout
        kept = used / setting.world if engine.gradients else used
        return (0.0 if engine.offload else kept), max(moments, key=lambda moment: moment.besides)
    if setting.accumulate > 1:  # those of earlier micro-batches are there in every later one
        kept, moment = learning, max(moments, key=lambda moment: moment.besides)
    else:
        moment = max(moments, key=lambda moment: moment.total)
        kept = moment.gradients
    if engine.gradients:
        kept = kept * _at_once(profile) + learning / setting.world
    return kept, moment


def _at_once(profile: StageProfile) -> float:
    """The part of what learns that FSDP2 holds whole at once."""
    return profile.gathered / max(1.0, profile.learning_bytes)


def _data(profile: StageProfile, setting: Setting) -> float:
    """Bytes of the training split on the device, 0 where it stays on the host; on the CPU what the process holds."""
    if setting.machine.is_cpu:
        return profile.held
    size = profile.instances * profile.row_bytes
    return size if size <= setting.resident else 0.0


def host_memory(engine: Engine, profile: StageProfile, setting: Setting) -> float:
    """Bytes on a node's host that offloading takes: weights, their float32 copy, gradients and the optimiser."""
    if not engine.offload:
        return 0.0
    return (3 * profile.learning_bytes + profile.optimiser) / setting.nodes


@dataclass(frozen=True)
class Exchange:
    """What a process sends in an optimiser step.

    Attributes:
        bytes: to other processes; calls: in so many collectives.
        host: bytes to and from the host.
        seconds: both, nothing hidden behind computation.
    """

    bytes: float
    calls: int
    host: float
    seconds: float


def exchange(engine: Engine, profile: StageProfile, setting: Setting) -> Exchange:
    """Communication of an optimiser step; see the module's docstring."""
    n, micro = setting.world, setting.accumulate
    used = profile.learning_bytes / (2 if engine.deepspeed and setting.precision != "no" else 1)
    host = 2 * used / n * micro if engine.offload else 0.0
    sent, calls, part = 0.0, 0, (n - 1) / n
    if n > 1 and engine.weights:
        sent = micro * 3 * part * used
        # a unit of FSDP2 is a block, one of ZeRO-3 a layer: a weight and a bias
        calls = 3 * micro * (math.ceil(profile.learning_tensors / 2) if engine.deepspeed else len(profile.units))
    elif n > 1 and engine.optimiser:
        scatters = micro if engine.gradients else 1
        sent, calls = (scatters + 1) * part * used, (scatters + 1) * math.ceil(profile.learning / ZERO_BUCKET)
    elif n > 1:
        sent = 2 * part * used + profile.buffers * micro
        calls = math.ceil(used / DDP_BUCKET) + (micro if profile.buffers else 0)
    machine = setting.machine
    several = setting.nodes > 1
    rate = (min(machine.link, machine.network) if several else machine.link) * LINK_EFFICIENCY
    seconds = sent / rate + calls * (NETWORK_LATENCY if several else NODE_LATENCY)
    if engine.offload:
        adam = 7 * profile.learning_bytes / setting.nodes / HOST_ADAM
        seconds += host / (machine.host * LINK_EFFICIENCY) + adam
    return Exchange(sent, calls, host, seconds)
