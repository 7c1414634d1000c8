"""`compile: auto`: how a network runs fastest here is timed in the run itself, once, and remembered in its folder.

Timed are a few steps, forward and backward, of the network alone on a batch of its own: the number of threads (of a
CPU, for all such networks together), the memory format of its convolutions, and torch.compile. What the recipe says
without `auto` stays unless something else is faster by a twentieth. Nothing of the steps stays: no gradient, no figure
of a batch norm, no random number. A run that goes on takes what it began with, so its numbers stay those of one choice.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import ranks
from .engine.seeding import random_state, restore_random_state
from .errors import CheckpointError, first_line
from .files import write_text
from .teachers.tap import call

FILE = "pace.json"
GAIN = 1.05
# Options take turns, so that a machine's moods fall on all of them.
_TURNS, _STEPS = 3, 3

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Runner:
    """A network whose pace is to be found: its name, itself, a batch that it takes and the names of its inputs."""

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    view: Sequence[str]


@dataclass(frozen=True)
class Pace:
    """What was chosen for a network."""

    compile: bool
    channels_last: bool


@dataclass(frozen=True)
class Paces:
    """What was chosen for a run; of threads None: as they are."""

    threads: int | None
    of: Mapping[str, Pace]

    def take(self, module: nn.Module, name: str) -> None:
        """Run a network as was chosen for the one of this name."""
        lay(module, self.of[name].channels_last)
        if self.of[name].compile:
            module.compile()


def lay(module: nn.Module, channels_last: bool) -> None:
    """Put the convolutions' weights into a memory format."""
    laid: dict[str, Any] = {"memory_format": torch.channels_last if channels_last else torch.contiguous_format}
    module.to(**laid)  # older torches don't declare it


def settled(
    folder: Path, runners: Sequence[Runner], channels_last: bool, autocast: Autocast, say: Callable[[str], None]
) -> Paces:
    """The choices of a run: those of its folder, else timed now and written there. The threads are set.

    Args:
        channels_last: what the recipe says.

    Raises:
        CheckpointError: the folder's file is damaged.
    """
    path = folder / FILE
    ranks.wait()
    known = path.exists()
    ranks.wait()
    if not known:
        found = _found(runners, channels_last, autocast, say)
        if ranks.rank() == 0:
            write_text(path, json.dumps(found, indent=1))
        ranks.wait()
    paces = _read(path, runners)
    if paces.threads is not None:
        torch.set_num_threads(paces.threads)
    return paces


def _read(path: Path, runners: Sequence[Runner]) -> Paces:
    try:
        found = json.loads(path.read_text())
        of = {one.name: Pace(bool(found["networks"][one.name]["compile"]),
                             bool(found["networks"][one.name]["channels_last"])) for one in runners}  # fmt: skip
        threads = None if found["threads"] is None else max(1, int(found["threads"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path} is damaged, which says how the networks run (compile: auto); delete it, and it "
                              "is timed again") from None  # fmt: skip
    return Paces(threads, of)


def _found(runners: Sequence[Runner], channels_last: bool, autocast: Autocast,
           say: Callable[[str], None]) -> dict[str, Any]:  # fmt: skip
    """Time what there is to choose."""
    device = next(iter(runners[0].inputs.values())).device
    with ExitStack() as stack:
        for one in runners:
            stack.enter_context(_unchanged(one.module))
        threads = _threads(runners, autocast) if device.type == "cpu" else None
        networks = {one.name: _pace(one, channels_last, autocast, say) for one in runners}
    said = "; ".join(f"{name} {_words(facts)}" for name, facts in networks.items())
    say(f"compile: auto: {said}" + (f"; {threads['chosen']} threads" if threads else ""))
    return {"device": str(device), "torch": torch.__version__, "threads": threads["chosen"] if threads else None,
            "threads_ms": threads["ms"] if threads else {}, "networks": networks}  # fmt: skip


def _words(facts: Mapping[str, Any]) -> str:
    return ", ".join(["compiled" if facts["compile"] else "eager", *["channels last"] * facts["channels_last"]])


def _threads(runners: Sequence[Runner], autocast: Autocast) -> dict[str, Any]:
    """This many as there are, or fewer by halves."""
    before = torch.get_num_threads()
    counts = [before >> n for n in range(before.bit_length())]

    def steps() -> None:
        for one in runners:
            _step(one, autocast)

    try:
        times = timed({str(n): lambda n=n: torch.set_num_threads(n) for n in counts}, steps)  # type: ignore[misc]
    finally:
        torch.set_num_threads(before)
    chosen = int(_quickest(times))
    torch.set_num_threads(chosen)
    return {"chosen": chosen, "ms": times}


def _pace(one: Runner, channels_last: bool, autocast: Autocast, say: Callable[[str], None]) -> dict[str, Any]:
    """A network's memory format, then whether it is compiled; it is left laid out so, and not compiled."""

    def step() -> None:
        _step(one, autocast)

    times: dict[str, float] = {}
    if any(p.dim() == 4 for p in one.module.parameters()):
        formats = {"channels last" if last else "contiguous": lambda last=last: lay(one.module, last)
                   for last in (channels_last, not channels_last)}  # fmt: skip
        times = timed(formats, step)
        channels_last = _quickest(times) == "channels last"
        lay(one.module, channels_last)
    eager = one.module._compiled_call_impl
    try:
        one.module.compile()
        compiled = one.module._compiled_call_impl
        step()

        def run_as(code: Any) -> Callable[[], None]:
            return lambda: setattr(one.module, "_compiled_call_impl", code)

        found = timed({"eager": run_as(eager), "compiled": run_as(compiled)}, step)
    except Exception as error:  # compilers fail in many ways
        say(f"{one.name}: torch.compile doesn't work here ({first_line(error)}); it runs uncompiled")
        found = {"eager": 0.0}
    finally:
        one.module._compiled_call_impl = eager
    return {"compile": _quickest(found) == "compiled", "channels_last": channels_last, "ms": {**times, **found}}


def _quickest(times: Mapping[str, float]) -> str:
    """The first, unless another one gains enough."""
    first, best = next(iter(times)), min(times, key=lambda name: times[name])
    return best if times[first] > GAIN * times[best] else first


def timed(options: Mapping[str, Callable[[], None]], step: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of a step under each option: the median of some steps in turns, each turn after one untimed."""
    found: dict[str, list[float]] = {name: [] for name in options}
    for _ in range(_TURNS):
        for name, begin in options.items():
            begin()
            step()
            for _ in range(_STEPS):
                started = time.perf_counter()
                step()
                found[name].append(1e3 * (time.perf_counter() - started))
    return {name: round(statistics.median(times), 4) for name, times in found.items()}


def _step(one: Runner, autocast: Autocast) -> None:
    """Forward and, where something learns, backward, in training mode; waits for the device."""
    learning = [p for p in one.module.parameters() if p.requires_grad]
    with torch.enable_grad(), autocast():
        logits = call(one.module.train(), one.inputs, one.view)
    if learning and logits.requires_grad:
        torch.autograd.grad(logits.float().square().mean(), learning, allow_unused=True)
    if logits.is_cuda:
        torch.cuda.synchronize(logits.device)


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """What a step changes is as it was, after the block."""
    random, was_training = random_state(), module.training
    buffers = [(x, x.detach().clone()) for x in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for own, value in buffers:
                own.copy_(value)
        module.train(was_training)
        restore_random_state(random)
