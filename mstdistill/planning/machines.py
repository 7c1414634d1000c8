"""Machines that a plan can be made for: published peaks of accelerators, and this CPU, measured when asked for.

Efficiencies say which part of a published peak PyTorch reaches. They are assumptions, not measurements: convolutions
and matrix products of middle size reach about half of a peak, elementwise work about three quarters of the bandwidth,
collectives about 0.7 of a link.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from ..config import OptimSettings
from ..engine.optimizer import build_optimizer
from ..errors import ConfigError, nearest
from .ledger import Ledger
from .timing import Timer

GPU_FLOPS_EFFICIENCY = 0.5
GPU_BANDWIDTH_EFFICIENCY = 0.75
LINK_EFFICIENCY = 0.7
# An operator that PyTorch starts one by one: Python, dispatcher, autograd and the launch itself.
GPU_SECONDS_PER_OPERATOR = 6e-6
# A collective's start among the GPUs of a node, and between nodes.
NODE_LATENCY, NETWORK_LATENCY = 2e-5, 5e-5
# CUDA context, cuBLAS and cuDNN workspaces; NCCL's buffers where there are several processes.
CONTEXT_BYTES, NCCL_BYTES = 600e6, 400e6
# Convolutions and products of odd sizes against the large matrix product that the CPU's probe times.
CPU_FLOPS_EFFICIENCY = 0.5

_GB, _TB, _TFLOPS = 1e9, 1e12, 1e12


@dataclass(frozen=True)
class Machine:
    """An accelerator, and the node it sits in.

    Attributes:
        fp32, tf32, bf16, fp16: dense peak FLOP/s.
        memory: bytes; bandwidth: of it, bytes/s.
        link: bytes/s that a GPU sends to the others of its node, in one direction.
        host: bytes/s between a GPU and its host, in one direction.
        network: bytes/s that leave a node, over all its adapters.
        flops_efficiency, bandwidth_efficiency: the part of the peaks that is counted on; assumptions.
        per_operator: seconds that starting an operator takes.
        context: bytes that a process takes before it computes anything.
        timer: of operators, where this is the machine itself.
    """

    name: str
    title: str
    fp32: float
    tf32: float
    bf16: float
    fp16: float
    memory: float
    bandwidth: float
    link: float
    host: float
    network: float
    flops_efficiency: float = GPU_FLOPS_EFFICIENCY
    bandwidth_efficiency: float = GPU_BANDWIDTH_EFFICIENCY
    per_operator: float = GPU_SECONDS_PER_OPERATOR
    context: float = CONTEXT_BYTES
    timer: Timer | None = field(default=None, compare=False, repr=False)

    @property
    def is_cpu(self) -> bool:
        """Whether tensors stay in the host's memory."""
        return self.name == "cpu"

    def rate(self, half: str | None, tf32: bool) -> float:
        """FLOP/s counted on for products of half precision ("bf16", "fp16"), or of float32 (None)."""
        peak = getattr(self, half) if half else self.tf32 if tf32 else self.fp32
        return float(peak * self.flops_efficiency)

    @property
    def reads(self) -> float:
        """Bytes/s counted on."""
        return self.bandwidth * self.bandwidth_efficiency


def _gpu(
    name: str, title: str, tflops: tuple[float, float, float, float], memory: float, bandwidth: float, link: float,
    host: float, network: float,
) -> Machine:  # fmt: skip
    """A row: TFLOP/s in fp32, tf32, bf16, fp16; GB; TB/s; then GB/s of link, host and network."""
    fp32, tf32, bf16, fp16 = (n * _TFLOPS for n in tflops)
    return Machine(name, title, fp32, tf32, bf16, fp16, memory * _GB, bandwidth * _TB, link * _GB, host * _GB,
                   network * _GB)  # fmt: skip


# Dense figures: where a sheet counts structured sparsity, half of it. Networks are those of the maker's own eight-GPU
# systems where it sells one, else a common choice.
GPUS = {
    machine.name: machine
    for machine in (
        # "NVIDIA A100 Tensor Core GPU" data sheet, SXM4; "DGX A100" data sheet: 8 x 200 Gb/s
        _gpu("a100", "NVIDIA A100 SXM 80 GB", (19.5, 156, 312, 312), 80, 2.039, 300, 32, 200),
        _gpu("a100-40", "NVIDIA A100 SXM 40 GB", (19.5, 156, 312, 312), 40, 1.555, 300, 32, 200),
        # "NVIDIA H100 Tensor Core GPU" data sheet, SXM5; "DGX H100" data sheet: 8 x 400 Gb/s
        _gpu("h100", "NVIDIA H100 SXM 80 GB", (67, 494.5, 989, 989), 80, 3.35, 450, 64, 400),
        # "NVIDIA H200 Tensor Core GPU" data sheet, SXM; "DGX H200" data sheet
        _gpu("h200", "NVIDIA H200 SXM 141 GB", (67, 494.5, 989, 989), 141, 4.8, 450, 64, 400),
        # "NVIDIA Blackwell" data sheet, HGX B200, an eighth; "DGX B200" data sheet: 1,440 GB, 64 TB/s, 8 x 400 Gb/s
        _gpu("b200", "NVIDIA B200 180 GB", (75, 1100, 2250, 2250), 180, 8.0, 900, 64, 400),
        # "AMD Instinct MI300X Accelerator" data sheet: vector fp32, seven Infinity Fabric links of 64 GB/s a direction
        _gpu("mi300x", "AMD Instinct MI300X 192 GB", (81.7, 653.7, 1307.4, 1307.4), 192, 5.3, 448, 64, 400),
        # "NVIDIA L40S" data sheet: no NVLink; two adapters of 200 Gb/s
        _gpu("l40s", "NVIDIA L40S 48 GB", (91.6, 183, 362, 362), 48, 0.864, 32, 32, 50),
        # "NVIDIA L4 Tensor Core GPU" data sheet: no NVLink; an adapter of 100 Gb/s
        _gpu("l4", "NVIDIA L4 24 GB", (30.3, 60, 121, 121), 24, 0.3, 32, 32, 12.5),
        # "NVIDIA A10 Tensor Core GPU" data sheet: no NVLink; an adapter of 100 Gb/s
        _gpu("a10", "NVIDIA A10 24 GB", (31.2, 62.5, 125, 125), 24, 0.6, 32, 32, 12.5),
        # "NVIDIA Ada GPU Architecture" white paper, GeForce RTX 4090, products of half precision summed in float32; an
        # adapter of 10 Gb/s
        _gpu("rtx4090", "NVIDIA GeForce RTX 4090 24 GB", (82.6, 82.6, 165.2, 165.2), 24, 1.008, 32, 32, 1.25),
    )
}


def find_machine(name: str, processes: int = 1) -> Machine:
    """A machine by name; `cpu` is this one, shared by `processes`.

    Raises:
        ConfigError: unknown; the message lists the nearest.
    """
    if name.lower() == "cpu":
        return probe_cpu(processes)
    if name.lower() not in GPUS:
        raise ConfigError(f"unknown GPU {name!r}; {nearest(name.lower(), [*GPUS, 'cpu'])}")
    return GPUS[name.lower()]


def probe_cpu(processes: int = 1) -> Machine:
    """This machine's CPU, measured in a fraction of a second: a matrix product, a copy, and a step of next to nothing,
    which is all starts of operators. The operators of a plan are timed when it asks for them."""
    size = 768
    a, b, out = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
    flops = 2 * size**3 / _best(lambda: torch.mm(a, b, out=out), 8)
    source, target = torch.zeros(2**24), torch.empty(2**24)
    bandwidth = 2 * source.nbytes / _best(lambda: target.copy_(source), 4)
    tiny = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())))
    optimizer, few = build_optimizer(OptimSettings(), tiny), torch.rand(4, 4)

    def step() -> None:
        tiny(few).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with Ledger() as ledger:
        step()
    share = 1.0 / processes
    works, timer = ledger.phases["forward"].works, Timer(share=share)
    alone = sum(timer.seconds(work.call, 0.0) for work in works) * share
    # what a step takes beside its operators: Python and autograd
    per_operator = max(0.0, _best(step, 8) - alone) / len(works)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        "cpu", f"this CPU ({torch.get_num_threads()} threads), measured", flops * share, flops * share, flops * share,
        flops * share, memory * share, bandwidth * share, bandwidth * share, bandwidth * share, 1.25 * _GB,
        flops_efficiency=CPU_FLOPS_EFFICIENCY, bandwidth_efficiency=1.0, per_operator=per_operator, context=0.0,
        timer=timer,
    )  # fmt: skip


def _best(work: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of several goes, after one to warm up."""
    work()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)
