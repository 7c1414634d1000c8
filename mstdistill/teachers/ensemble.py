"""The ensemble of specialised teachers: (teacher, tap, mask) each, M in all, one tensor of logits [B, M, C].

A teacher runs once for its variants (`shared_pass`). That is exact where nothing after a tap mixes rows or joins them
with a tensor of the old batch size; the first batch is checked against separate forwards, and a teacher that fails the
check runs them separately from then on. Where a router has chosen, an instance runs through its own teachers alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .mask import MaskNet
from .shared_pass import RowsMixed, Variant, shared_pass
from .tap import Teacher, find, freeze, hooked

# Largest relative difference at which the shared pass counts as the same numbers: rounding of another batch size.
SHARED_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}

# Rows of the first batch that the check looks at: enough to see rows mix, cheap beside the batch.
_CHECKED_ROWS = 8


@dataclass(frozen=True)
class Specialised:
    """One specialised teacher: `teacher` and `mask` are positions in the ensemble's lists; no tap, no mask."""

    name: str
    teacher: int
    tap: str | None
    mask: int | None


class Ensemble(nn.Module):
    """M specialised teachers over frozen teachers.

    Only the masks are registered (state dict, parameters): teachers are constants here. Call `place` to move both.

    Args:
        teachers: frozen in place (eval mode, no gradients).
        masks: for each teacher its taps' mask modules, in the order of its taps.
        mask_mode: "independent" (one mask plugged in at a time, as trained) or "cumulative" (a teacher's masks up to
            and with its own, as the released code runs stage 3: quirk 1).
    """

    def __init__(
        self, teachers: Sequence[Teacher], masks: Sequence[Sequence[nn.Module]], mask_mode: str = "independent"
    ) -> None:
        super().__init__()
        self.teachers = tuple(teachers)
        self.mask_mode = mask_mode
        self.members: list[Specialised] = []
        modules: list[nn.Module] = []
        for number, (teacher, own) in enumerate(zip(teachers, masks, strict=True)):
            freeze(teacher.module)
            if not teacher.taps:
                self.members.append(Specialised(teacher.name, number, None, None))
            for tap, mask in zip(teacher.taps, own, strict=True):
                find(teacher.module, tap, f"teacher {teacher.name!r}")
                self.members.append(Specialised(f"{teacher.name}.{tap}", number, tap, len(modules)))
                modules.append(mask)
        self.masks = nn.ModuleList(modules)
        self.shared: dict[int, bool] = {}
        self.apart: dict[int, bool] = {}

    @property
    def names(self) -> list[str]:
        """The specialised teachers' names, in the order of the logits' second axis."""
        return [member.name for member in self.members]

    @property
    def modalities(self) -> list[str]:
        """Every modality that some teacher sees."""
        return sorted({name for teacher in self.teachers for name in teacher.modalities})

    def see(self, present: Mapping[str, Tensor]) -> Tensor | None:
        """[B, T] which of the teachers can see an instance, by what it has; None: all see all."""
        found = [teacher.sees(present) for teacher in self.teachers]
        known = next((x for x in found if x is not None), None)
        if known is None:
            return None
        return torch.stack([torch.ones_like(known) if x is None else x for x in found], dim=1)

    def seen(self, present: Mapping[str, Tensor]) -> Tensor | None:
        """[B, M] which members can see an instance; see `see`."""
        found = self.see(present)
        if found is None:
            return None
        return torch.stack([found[:, member.teacher] for member in self.members], dim=1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Ensemble:
        """Other masks over the same teachers: they are constants."""
        twin = Ensemble.__new__(Ensemble)
        memo |= {id(teacher): teacher for teacher in self.teachers} | {id(self): twin}
        twin.__dict__ = copy.deepcopy(self.__dict__, memo)
        return twin

    def place(self, device: torch.device) -> Ensemble:
        """Move masks and teachers."""
        for teacher in self.teachers:
            teacher.module.to(device)
        return self.to(device)

    def forward(
        self, inputs: Mapping[str, Tensor], with_masks: bool = False
    ) -> Tensor | tuple[Tensor, dict[int, Tensor]]:
        """Logits [B, M, C] or [B, M, C, H, W] of a batch of named modalities.

        Args:
            with_masks: give also, of each member with a mask, its values [B, d]; of a submodule that runs several times
                in a forward pass their mean. Masks must act one at a time.
        """
        if with_masks:
            return self._with_masks(inputs)
        parts: list[Tensor] = []
        for number in range(len(self.teachers)):
            parts.extend(self._variants(number, inputs))
        return torch.stack(parts, dim=1)

    def _with_masks(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
        masks = cast(Sequence[MaskNet], self.masks)
        for mask in masks:
            mask.noted = []
        try:
            logits = self.forward(inputs)
            values = [torch.stack(mask.noted or []).mean(dim=0) for mask in masks]
        finally:
            for mask in masks:
                mask.noted = None
        members = enumerate(self.members)
        return cast(Tensor, logits), {i: values[member.mask] for i, member in members if member.mask is not None}

    def _forget_masks(self, members: Iterable[int]) -> None:
        """A pass begins: what an earlier one noted (a trial, or one that broke off) doesn't count."""
        for member in members:
            position = self.members[member].mask
            noted = getattr(self.masks[position], "noted", None) if position is not None else None
            if noted:
                noted.clear()

    @torch.no_grad()
    def chosen(self, inputs: Mapping[str, Tensor], indices: Tensor) -> Tensor:
        """Logits [B, k, C, ...] of each instance's own members `indices` [B, k], -1 for nobody (then zeros); no other
        member sees it.

        A teacher whose rows depend on each other (the first batch shows it) runs on the whole batch.
        """
        if len(indices) == 1:  # a single row shows nothing of its neighbours
            everyone = self(inputs)
            return everyone[torch.zeros_like(indices), indices]  # of nobody: anybody's
        # a column more, for nobody
        wanted = torch.zeros(len(indices), len(self.members) + 1, dtype=torch.bool, device=indices.device)
        wanted.scatter_(1, torch.where(indices < 0, len(self.members), indices), True)
        wanted = wanted[:, :-1]
        logits: Tensor | None = None
        for number in range(len(self.teachers)):
            members = [i for i, member in enumerate(self.members) if member.teacher == number]
            if number not in self.apart:
                self.apart[number] = self._check_apart(number, members, inputs)
            for member, rows, found in self._wanted(number, members, inputs, wanted):
                if logits is None:
                    logits = found.new_zeros(*indices.shape, *found.shape[1:])
                at, place = (indices[rows] == member).nonzero(as_tuple=True)
                logits[rows[at], place] = found[at]
        if logits is None:  # nobody was chosen anywhere
            one = self({name: x[:1] for name, x in inputs.items()})
            logits = one.new_zeros(*indices.shape, *one.shape[2:])
        return logits

    def _wanted(
        self, number: int, members: Sequence[int], inputs: Mapping[str, Tensor], wanted: Tensor
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of each wanted member of a teacher: its instances [R] and their logits [R, C, ...]."""
        own = wanted[:, list(members)]
        rows = own.any(dim=1).nonzero()[:, 0]
        if not len(rows):
            return
        if not self.apart[number]:
            everyone = torch.arange(len(wanted), device=wanted.device)
            for member, logits in zip(members, self._variants(number, inputs), strict=True):
                yield member, everyone, logits
            return
        part = {name: x[rows] for name, x in inputs.items()}
        for member, (at, logits) in zip(members, self._shared(number, members, part, own[rows]) or (), strict=False):
            yield member, rows if at is None else rows[at], logits
        if self.shared.get(number, False):
            return
        for position, member in enumerate(members):
            at = own[rows][:, position].nonzero()[:, 0]
            if len(at):
                alone = {name: x[at] for name, x in part.items()}
                yield member, rows[at], self._separately(number, [member], alone)[0]

    def _variants(self, number: int, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        members = [i for i, member in enumerate(self.members) if member.teacher == number]
        if len(members) == 1:
            return self._separately(number, members, inputs)
        if number not in self.shared and next(iter(inputs.values())).shape[0] == 1:
            # a single row broadcasts where more would clash: it shows nothing
            return self._separately(number, members, inputs)
        if number not in self.shared:
            self.shared[number] = self._check_sharing(number, members, inputs)
        together = self._shared(number, members, inputs)
        return self._separately(number, members, inputs) if together is None else [logits for _, logits in together]

    def _shared(
        self, number: int, members: Sequence[int], inputs: Mapping[str, Tensor], wanted: Tensor | None = None
    ) -> list[tuple[Tensor | None, Tensor]] | None:
        """One forward for all members, or None where they must run separately."""
        if not self.shared.get(number, False):
            return None
        try:
            return self._together(number, members, inputs, wanted)
        except torch.OutOfMemoryError:  # a RuntimeError too, and no sign of mixed rows
            raise
        except _MIXED:  # the first batch needed no attention mask, this one does
            self.shared[number] = False
            return None

    def _active(self, member: int) -> list[int]:
        """The members whose masks are plugged in when this one runs."""
        if self.mask_mode == "independent" or self.members[member].mask is None:
            return [member]
        teacher = self.members[member].teacher
        return [i for i in range(member + 1) if self.members[i].teacher == teacher]

    def _mask(self, member: int) -> Callable[[Tensor], Tensor]:
        position = self.members[member].mask
        return nn.Identity() if position is None else self.masks[position]

    def _separately(self, number: int, members: Sequence[int], inputs: Mapping[str, Tensor]) -> list[Tensor]:
        teacher = self.teachers[number]
        self._forget_masks(members)
        results = []
        for member in members:
            changes: dict[str, Callable[[Tensor], Tensor]] = {}
            for active in self._active(member):
                tap = self.members[active].tap
                if tap is None:
                    continue
                before = changes.get(tap)
                mask = self._mask(active)
                changes[tap] = mask if before is None else _chain(before, mask)
            with hooked(teacher.module, changes, f"teacher {teacher.name!r}"):
                results.append(teacher.logits(inputs))
        return results

    def _together(
        self, number: int, members: Sequence[int], inputs: Mapping[str, Tensor], wanted: Tensor | None = None
    ) -> list[tuple[Tensor | None, Tensor]]:
        """One forward for all of a teacher's members; see `shared_pass`."""
        self._forget_masks(members)
        first = members[0]
        variants = [
            Variant(str(self.members[m].tap), self._mask(m), frozenset(one - first for one in self._active(m)))
            for m in members
        ]
        return shared_pass(self.teachers[number], variants, inputs, wanted)

    @torch.no_grad()
    def _check_apart(self, number: int, members: Sequence[int], inputs: Mapping[str, Tensor]) -> bool:
        """Whether an instance's logits are the same without its neighbours; finds out too whether a pass is shared."""
        inputs = {name: x[:_CHECKED_ROWS] for name, x in inputs.items()}
        whole = torch.stack(self._variants(number, inputs))
        some = torch.stack(self._variants(number, {name: x[::2] for name, x in inputs.items()}))
        return some.shape[1:] == whole[:, ::2].shape[1:] and _same(some, whole[:, ::2])

    @torch.no_grad()
    def _check_sharing(self, number: int, members: Sequence[int], inputs: Mapping[str, Tensor]) -> bool:
        """Whether one shared forward gives the separate forwards' numbers on the batch's first rows."""
        inputs = {name: x[:_CHECKED_ROWS] for name, x in inputs.items()}
        training = [mask.training for mask in self.masks]
        self.masks.eval()
        try:
            separate = torch.stack(self._separately(number, members, inputs))
            try:
                together = torch.stack([logits for _, logits in self._together(number, members, inputs)])
            except _MIXED:  # shapes that no longer fit: the network joins rows after a tap
                return False
            if together.shape != separate.shape:
                return False
            return _same(together, separate)
        finally:
            for mask, was in zip(self.masks, training, strict=True):
                mask.train(was)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two passes gave the same numbers, up to the rounding of another batch size."""
    # half precision rounds each batch size its own way: a tenth of a logit would still be a mixed-up row
    tolerance = SHARED_TOLERANCE.get(one.dtype, 2e-2)
    return bool((one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1.0))


# What a network raises where rows and batch no longer agree.
_MIXED = (RowsMixed, RuntimeError, IndexError, ValueError)


def _chain(first: Callable[[Tensor], Tensor], then: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda feature: then(first(feature))
