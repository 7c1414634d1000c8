"""What a step does, from the operators that it runs: work per kernel, and which bytes are alive when.

FLOPs by the formulas of `torch.utils.flop_counter`, bytes from the operands, memory from the lives of storages. On fake
tensors nothing is computed and nothing allocated, and the account is the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .timing import Call, call_of

Scratch = Callable[[Any, Any, Any], float]
Lay = Callable[[Any, Any, Any], Any]
HALVES = (torch.float16, torch.bfloat16)
KINDS = ("gradients", "saved", "batch", "rest")
_aten = torch.ops.aten
_device = torch.ops.prim.device.default
# They allocate and leave the rest to others.
_ALLOCATE = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided,
             _aten._local_scalar_dense}  # fmt: skip
# They read the rows that they give, not the table.
_PICK = {_aten.index, _aten.index_select, _aten.gather, _aten.embedding, _aten.slice, _aten.select}


@dataclass(frozen=True)
class Work:
    """A kernel: its FLOPs, the bytes that it reads and writes, whether its operands are of half precision, and how it
    was called where that is known."""

    flops: float
    bytes: float
    half: bool = False
    call: Call | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Moment:
    """Bytes alive at one time, beside the networks, their optimiser and what else was there before the step.

    Attributes:
        saved: for the backward pass.
        batch: inputs and labels.
        rest: whatever else the operators made.
    """

    gradients: float = 0
    saved: float = 0
    batch: float = 0
    rest: float = 0

    @property
    def besides(self) -> float:
        """All but the gradients."""
        return self.saved + self.batch + self.rest

    @property
    def total(self) -> float:
        """All."""
        return self.gradients + self.besides


@dataclass
class Phase:
    """A part of a step.

    Attributes:
        works: its kernels, in order.
        fullest: the moment with the most bytes.
        fullest_besides: the moment with the most bytes beside the gradients.
    """

    works: list[Work] = field(default_factory=list)
    fullest: Moment = Moment()
    fullest_besides: Moment = Moment()


@dataclass
class _Held:
    storage: Any  # a weak reference; None: known, and not of this step
    bytes: int
    kind: str


class Ledger(TorchDispatchMode):
    """Keeps account of the operators within its block.

    Args:
        scratch: what an operator holds for a moment beside operands and results.
        lay: an operator's results in other memory than fake ones have.

    Attributes:
        phases: by name, in the order of their begin.
        saved: unique bytes that autograd keeps for the backward pass, parameters and inputs left out.
    """

    active: ClassVar[Ledger | None] = None

    def __init__(self, scratch: Scratch | None = None, lay: Lay | None = None) -> None:
        super().__init__()
        self.scratch, self.lay = scratch, lay
        self.phases: dict[str, Phase] = {}
        self.saved = 0
        self._phase = self.begin("forward")
        self._held: dict[int, _Held] = {}
        self._now: dict[str, float] = dict.fromkeys(KINDS, 0)

    def __enter__(self) -> Any:
        Ledger.active = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        Ledger.active = None
        super().__exit__(*error)

    def note(self, work: Work) -> None:
        """A kernel that this machine hasn't."""
        self._phase.works.append(work)

    def begin(self, name: str) -> Phase:
        """What follows is of this phase."""
        self._phase = self.phases.setdefault(name, Phase())
        return self._phase

    def restart(self, name: str) -> None:
        """What follows is of this phase; kernels that it had are of an earlier micro-batch and forgotten."""
        self.begin(name).works.clear()
        if name == "forward":
            self.saved = 0

    def adopt(self, tensors: Iterable[Tensor]) -> None:
        """These are the batch."""
        for x in tensors:
            self._sort(x, "batch")

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Within the block it is known what autograd saves and which tensors become the module's gradients."""

        def accumulated(parameter: Tensor) -> None:
            self._sort(parameter.grad, "gradients")

        handles = [p.register_post_accumulate_grad_hook(accumulated) for p in module.parameters() if p.requires_grad]
        try:
            with saved_tensors_hooks(self._pack, lambda x: x):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _device:
            return _where(args[0])
        before = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        for x in before:
            self._track(x, ours=False)
        known = {id(x.untyped_storage()) for x in before}
        out = func(*args, **kwargs)
        if self.lay is not None:
            out = self.lay(func, args, out)
        after = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        made = [x for x in after if id(x.untyped_storage()) not in known]
        for x in made:
            self._track(x, ours=True)
        packet = func._overloadpacket
        if packet not in _ALLOCATE and (made or func._schema.is_mutable):
            self._phase.works.append(_work(func, args, kwargs, out, before, after))
        self._look(self.scratch(func, args, out) if self.scratch is not None else 0.0)
        return out

    def _track(self, x: Tensor, ours: bool) -> None:
        storage = x.untyped_storage()
        key = id(storage)
        if key not in self._held:
            size = storage.nbytes() if ours else 0
            self._held[key] = _Held(weakref.ref(storage, partial(self._drop, key)), size, "rest")
            self._now["rest"] += size

    def _drop(self, key: int, _: Any) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._now[held.kind] -= held.bytes

    def _sort(self, x: Tensor | None, kind: str) -> bool:
        """Count a tensor as of this kind from now on; false where it isn't of this step, or sorted already."""
        held = self._held.get(id(x.untyped_storage())) if x is not None else None
        if held is None or not held.bytes or (held.kind != "rest" and kind != "gradients"):
            return False
        self._now[held.kind] -= held.bytes
        self._now[kind] += held.bytes
        held.kind = kind
        return True

    def _pack(self, x: Tensor) -> Tensor:
        if self._sort(x, "saved"):
            self.saved += x.untyped_storage().nbytes()
        return x

    def _look(self, scratch: float) -> None:
        now, phase = dict(self._now), self._phase
        now["rest"] += scratch
        besides = now["saved"] + now["batch"] + now["rest"]
        if besides + now["gradients"] > phase.fullest.total:
            phase.fullest = Moment(**now)
        if besides > phase.fullest_besides.besides:
            phase.fullest_besides = Moment(**now)


def _where(x: Any) -> torch.device:
    """A tensor's device; autograd asks a fake one for it more often than for all else."""
    device: torch.device = x.fake_device if isinstance(x, FakeTensor) else _device(x)
    return device


def _work(func: Any, args: Any, kwargs: Any, out: Any, before: list[Tensor], after: list[Tensor]) -> Work:
    packet = func._overloadpacket
    flops = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
    if packet in _PICK:
        size = 2 * sum(_bytes(x) for x in after)
    elif func._schema.is_mutable:  # changed in place: read and written
        size = sum(_bytes(x) for x in before) + sum(_bytes(x) for x in _changed(func, args))
    else:
        size = sum(_bytes(x) for x in before) + sum(_bytes(x) for x in after)
    return Work(flops, size, any(x.dtype in HALVES for x in before), call_of(func, args, kwargs))


def _changed(func: Any, args: Any) -> list[Tensor]:
    found = []
    for spec, value in zip(func._schema.arguments, args, strict=False):
        if spec.alias_info is not None and spec.alias_info.is_write:
            found += [x for x in tree_leaves(value) if isinstance(x, Tensor)]
    return found


def _bytes(x: Tensor) -> int:
    """What reading it touches: an expanded tensor is smaller than it looks."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


class Answering(TorchDispatchMode):
    """Fake tensors have no values; where code asks for one, it hears 0 or False.

    Checks of the data (is there a NaN, an index out of range) then pass as they do on sound data.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten._local_scalar_dense.default:
            x = args[0]
            constant = getattr(x, "constant", None)
            if constant is not None:
                return constant.item()
            return False if x.dtype == torch.bool else 0.0 if x.is_floating_point() else 0
        return _where(args[0]) if func is _device else func(*args, **(kwargs or {}))
