"""How it is measured. On a GPU: events, a pool of inputs larger than the L2 cache, a flush before each run, the copy
ceiling of the same machine in the same run. On a CPU: wall time, and the allocator's events."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .cases import Case, Form, Inputs, trained, widened

Figures = dict[str, Any]
POOL_BYTES = 450_000_000  # three times the largest L2 cache in use


def quantiles(times: list[float]) -> Figures:
    """Median, 20 % and 80 % of seconds, in microseconds."""
    ordered = sorted(times)
    pick = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.2, 0.8)]
    return {"us": 1e6 * statistics.median(ordered), "us_p20": 1e6 * pick[0], "us_p80": 1e6 * pick[1]}


def runner(form: Form, inputs: Inputs, learns: list[Tensor], what: str) -> Callable[[], Any]:
    """A call that does one pass of a form. `backward` prepares the graph outside of what is timed."""
    if what == "forward":
        return lambda: form(inputs)
    if what == "both":
        return lambda: torch.autograd.grad(form(inputs), learns, allow_unused=True)
    raise ValueError(what)


class Gpu:
    """Times on a GPU."""

    def __init__(self, seconds: float = 0.15) -> None:
        self.device, self.seconds = torch.device("cuda"), seconds
        self.flush = torch.empty(POOL_BYTES // 4, dtype=torch.int32, device=self.device)

    def copy_ceiling(self) -> float:
        """Bytes per second of a large copy, read and written both counted."""
        source = torch.empty(1 << 30, dtype=torch.uint8, device=self.device)
        sink = torch.empty_like(source)
        times = self.times([lambda: sink.copy_(source)])
        return 2 * source.numel() / statistics.median(times)

    def times(self, calls: Sequence[Callable[..., Any]], prepare: Callable[[int], Any] | None = None) -> list[float]:
        """Seconds of calls taken in turn; `prepare(i)` runs outside of what is timed and its result is passed on."""
        for i, call in enumerate(calls):
            call(prepare(i)) if prepare else call()
        torch.cuda.synchronize()
        out: list[float] = []
        started = time.perf_counter()
        while len(out) < 10 or (time.perf_counter() - started < self.seconds and len(out) < 200):
            i = len(out) % len(calls)
            made = prepare(i) if prepare else None
            self.flush.zero_()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            calls[i](made) if prepare else calls[i]()
            end.record()
            torch.cuda.synchronize()
            out.append(begin.elapsed_time(end) / 1e3)
        return out

    def measure(self, case: Case, form: Form) -> Figures:
        """Each pass's time, peak memory above the inputs, launches, and a captured graph's time where that works."""
        one = case.make(self.device, case.dtype, 0)
        size = sum(x.nbytes for x in one.values() if isinstance(x, Tensor))
        pool = [one] + [case.make(self.device, case.dtype, seed)
                        for seed in range(1, max(1, min(16, POOL_BYTES // max(1, size) + 1)))
                        if "layers" not in one]  # fmt: skip
        learns = [trained(inputs, case.learns) for inputs in pool]
        found: Figures = {}
        for what in ("forward", "both"):
            calls = [runner(form, x, y, what) for x, y in zip(pool, learns, strict=True)]
            found[what] = quantiles(self.times(calls))
        backward = [partial(_backward, learns=y) for y in learns]
        found["backward"] = quantiles(self.times(backward, prepare=lambda i: form(pool[i])))
        both = runner(form, pool[0], learns[0], "both")
        found["peak_mb"] = self.peak(both)
        found["launches"] = self.launches(both)
        found["graph_us"] = self.graphed(both)
        return found

    def peak(self, call: Callable[[], Any]) -> float:
        """Megabytes above what is held before."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def launches(self, call: Callable[[], Any]) -> int:
        """Kernels of one forward and backward."""
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            call()
            torch.cuda.synchronize()
        return sum(1 for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA)

    def graphed(self, call: Callable[[], Any]) -> float | None:
        """Microseconds of a replay, without the host's launches; None where the form can't be captured."""
        try:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    call()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()
            return float(quantiles(self.times([graph.replay]))["us"])
        except RuntimeError:
            torch.cuda.synchronize()
            return None


def _backward(loss: Tensor, learns: list[Tensor]) -> Any:
    return torch.autograd.grad(loss, learns, allow_unused=True)


class Cpu:
    """Times on the CPU: the forms of a case take turns, so that a machine's moods fall on all of them."""

    def __init__(self, seconds: float = 3.0) -> None:
        self.device, self.seconds = torch.device("cpu"), seconds

    def measure(self, case: Case, forms: Mapping[str, Form]) -> dict[str, Figures]:
        """Each form's figures, from at least seven rounds."""
        inputs = case.make(self.device, case.dtype, 0)
        learns = trained(inputs, case.learns)
        calls = {(name, what): runner(form, inputs, learns, what)
                 for name, form in forms.items() for what in ("forward", "both")}  # fmt: skip
        times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
        for call in calls.values():
            call()
        started, rounds = time.perf_counter(), 0
        while rounds < 7 or (time.perf_counter() - started < self.seconds and rounds < 100):
            for key, call in calls.items():
                begin = time.perf_counter()
                call()
                times[key].append(time.perf_counter() - begin)
            rounds += 1
        found: dict[str, Figures] = {}
        for name in forms:
            forward, both = quantiles(times[name, "forward"]), quantiles(times[name, "both"])
            found[name] = {"forward": forward, "both": both, "backward": {"us": both["us"] - forward["us"]}}
        return found


# Gradients of parameters this large are the same last allocation in every form, and would hide what differs.
_LARGE = 10_000_000


def cpu_peak(case: Case, form: Form) -> float:
    """Most megabytes of tensors alive at once during forward and backward, above inputs and parameters; parameters of
    10 million numbers and more take no gradient here. Counted from the allocator's events, so always the same."""
    from torch.profiler import ProfilerActivity, profile

    inputs = case.make(torch.device("cpu"), case.dtype, 0)
    learns = [x if x.numel() < _LARGE else x.requires_grad_(False) for x in trained(inputs, case.learns)]
    call = runner(form, inputs, [x for x in learns if x.requires_grad], "both")
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        call()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most / 1e6


def error_of(case: Case, form: Form, device: torch.device) -> float:
    """Largest relative error of loss and gradients against the plain form in float64 on the same inputs."""
    inputs = case.make(device, case.dtype, 0)
    exact = widened(inputs)
    found: list[Tensor | None] = []
    wanted: list[Tensor | None] = []
    for x, run, out in ((inputs, form, found), (exact, case.forms["plain"], wanted)):
        learns = trained(x, case.learns)
        loss = run(x)
        out += [loss.detach(), *torch.autograd.grad(loss, learns, allow_unused=True)]
    errors = [float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))
              for a, b in zip(found, wanted, strict=True)
              if a is not None and b is not None and float(b.norm()) > 1e-9]  # fmt: skip
    return max(errors)


@contextmanager
def plain_kernels() -> Any:
    """Within: this project's plain forms, also on a GPU."""
    before = os.environ.get("MSTDISTILL_KERNELS")
    os.environ["MSTDISTILL_KERNELS"] = "torch"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MSTDISTILL_KERNELS"]
        else:
            os.environ["MSTDISTILL_KERNELS"] = before
