"""What stage 2 asks of masks beside the agreement: masks with logits, budgets, labels where the student is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from mstdistill import distill
from mstdistill.data.feeding.batch import Batch, Partner
from mstdistill.engine.seeding import initialising
from mstdistill.errors import ConfigError
from mstdistill.stages.mask_objective import budget_rows, corrected, mistaken
from mstdistill.state import load_state
from mstdistill.teachers.ensemble import Ensemble
from mstdistill.teachers.mask import MaskNet, plan_mask
from mstdistill.teachers.tap import Teacher, discover, hooked
from mstdistill.weights import part
from tests import toy

from .conftest import MLP, make_split


def ensemble_of(teachers: list[Teacher], inputs: dict[str, Tensor]) -> Ensemble:
    masks = []
    for teacher in teachers:
        shapes = discover(teacher.module, inputs, teacher.modalities, teacher.taps, "teacher")
        own: list[nn.Module] = []
        for tap in teacher.taps:
            with initialising(0, "mask", teacher.name, tap):
                own.append(plan_mask(tap, shapes[tap], hidden_dim_factor=1).build())
        masks.append(own)
    return Ensemble(teachers, masks).to(next(iter(inputs.values())).dtype)


@pytest.mark.parametrize("shared", [None, True, False])
def test_logits_come_with_the_masks_that_made_them(shared: bool | None) -> None:
    """None: the first batch, on which passes are tried."""
    torch.manual_seed(0)
    inputs = make_split(9).inputs
    plain = Teacher("plain", MLP(5, 8, 7, 3), ("m2",))
    found = ensemble_of([plain, *toy.networks()[1]], inputs)
    if shared is not None:
        found.shared = dict.fromkeys(range(3), shared)
    logits, masks = found(inputs, True)
    assert torch.allclose(logits, found(inputs), atol=1e-6)
    assert list(masks) == [1, 2, 3, 4]
    for number, mask in masks.items():
        member = found.members[number]
        features: list[Tensor] = []

        def look(feature: Tensor, features: list[Tensor] = features) -> Tensor:
            features.append(feature)
            return feature

        assert member.tap is not None
        with hooked(found.teachers[member.teacher].module, {member.tap: look}, "teacher"):
            found.teachers[member.teacher].logits(inputs)
        wanted = cast(MaskNet, found.masks[member.mask or 0]).mask(features[0])
        assert torch.allclose(mask, wanted, atol=1e-6)
    sum(mask.sum() for mask in masks.values()).backward()
    assert all(p.grad is not None for name, p in found.named_parameters() if "embed" in name)
    assert all(mask.noted is None for mask in found.masks)


class Twice(nn.Module):
    """Its tap runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(torch.relu(self.inner(x))))


def test_a_tap_that_runs_twice_gives_the_mean_of_its_masks() -> None:
    torch.manual_seed(0)
    inputs = make_split(9).inputs
    found = ensemble_of([Teacher("twice", Twice(), ("m1",), ("inner",))], inputs)
    seen: list[Tensor] = []
    found.masks[0].register_forward_hook(lambda mask, args, out: seen.append(mask.mask(args[0])))
    _, masks = found(inputs, True)
    assert torch.allclose(masks[0], (seen[-2] + seen[-1]) / 2, atol=1e-6)


def test_objectives_against_plain_sums() -> None:
    g = torch.Generator().manual_seed(0)
    mask, rows, task = (torch.rand(*shape, generator=g, dtype=torch.float64) for shape in ((6, 7), (6,), (6,)))
    for row, found in zip(mask.tolist(), budget_rows(mask, 0.3).tolist(), strict=True):
        assert found == pytest.approx((sum(row) / 7 - 0.3) ** 2, rel=1e-12)
    answers = [0, 1, 2, 2, 1, 0]
    label, other = torch.tensor([0, 2, 2, -1, 0, 1]), torch.tensor([1, 1, 2, 0, 2, 2])
    student = 9 * F.one_hot(torch.tensor(answers), 3).double()
    batch = Batch({}, label, torch.arange(6), torch.ones(6), 6.0)
    assert mistaken(student, batch, None).tolist() == [False, True, False, False, True, True]
    assert mistaken(student, batch, 0).tolist() == [False, True, False, True, False, True]  # 0 doesn't count
    batch.partner = Partner({}, other, torch.arange(6), torch.full((6,), 0.6))
    assert mistaken(student, batch, None).tolist() == [False, False, False, False, True, True]
    wrong = torch.tensor([True, False, True, False, False, True])
    wanted = [t if w else r for r, t, w in zip(rows.tolist(), task.tolist(), wrong.tolist(), strict=True)]
    assert corrected(rows, task, wrong).tolist() == wanted


SETTINGS = [{"keep": 0.3, "keep_weight": 2.0}, {"correct": True}, {"correct": True, "task": 0.5, "keep": 0.2}]


@pytest.mark.parametrize("asked", SETTINGS)
def test_the_first_step_s_losses_are_the_sums_written_out(asked: dict[str, Any], tmp_path: Path) -> None:
    """All 40 instances in one step, a third of them without a label, float64."""
    split, seen = make_split(40, seed=1, dtype=torch.float64), {}
    split.label[::3] = -1

    def observe(stage: str, number: int, parts: Mapping[str, Tensor]) -> None:
        if stage == "specialise":
            seen.update({name: float(value) for name, value in parts.items()})

    student, teachers = toy.networks()
    networks = [teacher.module.double() for teacher in teachers] + [student.double()]
    distill(student, teachers, split, make_split(30, seed=2, dtype=torch.float64), "m1", out=tmp_path, quiet=True,
            observe=observe, settings=toy.merged(toy.SETTINGS, {
                "batch_size": 40, "specialise": {"epochs": 1, **asked}, "distill": {"epochs": 1}, "temperature": 3.0,
                "alone": {"enabled": False}, "data": {"unlabelled": "learn"}}))  # fmt: skip
    cotrained = load_file(tmp_path / "cotrain" / "result.safetensors")
    for network, name in zip(networks, ("teachers.0", "teachers.1", "student"), strict=True):
        load_state(network, part(cotrained, name))
    found = ensemble_of(teachers, split.inputs)
    with torch.no_grad():
        logits, masks = found(split.inputs, True)
        said = student(split.inputs["m1"])
    known = split.label >= 0
    wrong = known & (said.argmax(dim=1) != split.label)
    assert 0 < wrong.sum() < known.sum()
    for i, name in enumerate(found.names):
        total = 0.0
        for n in range(40):
            own, theirs = logits[n, i].log_softmax(0), (logits[n, i] / 3).log_softmax(0)
            reference = (said[n] / 3).softmax(0)
            label = -float(own[split.label[n]]) if known[n] else 0.0
            agreement = 9 * float((reference * (reference.log() - theirs)).sum())
            total += label if asked.get("correct") and wrong[n] else agreement
            total += asked.get("task", 0.0) * label * 40 / int(known.sum())
            if "keep" in asked:
                total += asked.get("keep_weight", 10.0) * (float(masks[i][n].mean()) - asked["keep"]) ** 2
        assert seen[name] == pytest.approx(total / 40, rel=1e-9), name


def test_masks_keep_their_share_and_choose_by_instance(tmp_path: Path) -> None:
    asked = {"epochs": 40, "lr": 0.02, "keep": 0.3}
    toy.run(tmp_path, cotrain={"epochs": 20}, specialise=asked, distill={"epochs": 1}, alone={"enabled": False})
    inputs, teachers = make_split(30, seed=2).inputs, toy.networks()[1]
    for number, teacher in enumerate(teachers):
        load_state(teacher.module, part(load_file(tmp_path / "cotrain" / "result.safetensors"), f"teachers.{number}"))
    found = ensemble_of(teachers, inputs)
    with torch.no_grad():
        before = found(inputs, True)[1]
        found.load_state_dict(load_file(tmp_path / "specialise" / "result.safetensors"))
        for i, mask in found(inputs, True)[1].items():
            assert (mask.mean(dim=1) - 0.3).abs().max() < 0.1 < (before[i].mean(dim=1) - 0.3).abs().max()
            assert mask.std(dim=0).mean() > 3 * before[i].std(dim=0).mean()


def test_correcting_is_for_one_class_an_instance(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"specialise\.correct"):
        toy.run(tmp_path, several=True, specialise={"correct": True})
