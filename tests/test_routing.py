"""Routers and rules: what they pick, and what the router learns from."""

from __future__ import annotations

import pytest
import torch

from mstdistill.data.feeding.batch import Batch
from mstdistill.errors import ConfigError
from mstdistill.losses import balance
from mstdistill.routing import RULES, DenseRouter, Router, RoutingRule


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    student, teachers = torch.randn(12, 4, generator=g), torch.randn(12, 3, 4, generator=g)
    return student, teachers, torch.randint(4, (12,), generator=g), torch.arange(12)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dense", [False, True])
def test_every_rule_gives_a_loss_per_instance(name: str, dense: bool) -> None:
    student, teachers, _, index = problem()
    if dense:
        student = student[:, :, None, None].expand(-1, -1, 4, 5).contiguous()
        teachers = teachers[:, :, :, None, None].expand(-1, -1, -1, 4, 5).contiguous()
    router = (DenseRouter if dense else Router)(4, 3)
    rule = RoutingRule(name, k=2)
    rule.check(3)
    routing = rule.select(router(student), index, 0)
    loss = rule.distillation(student, teachers, routing, 4.0).loss
    assert loss.shape == (12,)
    assert (loss > 0).all()


@pytest.mark.parametrize(("name", "signal", "learns"), [
    ("topk-mean", "none", False), ("soft", "none", False), ("topk-weighted", "none", False),
    ("soft", "distill", True), ("topk-weighted", "distill", True),
])  # fmt: skip
def test_router_learns_from_distillation_where_asked(name: str, signal: str, learns: bool) -> None:
    student, teachers, _, index = problem()
    router = Router(4, 3)
    rule = RoutingRule(name, k=2, signal=signal)
    loss = rule.distillation(student, teachers, rule.select(router(student), index, 0), 4.0).loss.sum()
    assert loss.requires_grad is learns  # nothing but the router could need a gradient here
    if learns:
        loss.backward()
        assert router.fc2.weight.grad is not None
        assert router.fc2.weight.grad.abs().max() > 0


@pytest.mark.parametrize("dense", [False, True])
def test_task_signal_finds_the_teacher_that_is_right(dense: bool) -> None:
    """Teacher 0 is right where the student says class 0, teacher 1 elsewhere: a router trained by the task sees it."""
    torch.manual_seed(0)
    label = torch.randint(2, (64,))
    student = torch.nn.functional.one_hot(label, 2).float() * 3
    right, wrong = student * 3, student.flip(1) * 3
    first = torch.where((label == 0)[:, None], right, wrong)
    second = torch.where((label == 1)[:, None], right, wrong)
    teachers = torch.stack([first, second], dim=1)
    if dense:
        student, teachers = (
            student[:, :, None, None].expand(-1, -1, 6, 6),
            teachers[..., None, None].expand(-1, -1, -1, 6, 6),
        )
        label = label[:, None, None].expand(-1, 6, 6).clone()
        label[:, 0] = 255  # unlabelled pixels don't count
    router = (DenseRouter if dense else Router)(2, 2)
    rule = RoutingRule("topk-mean", signal="task")
    optimizer = torch.optim.Adam(router.parameters(), 0.05)
    for _ in range(80):
        routing = rule.select(router(student), torch.arange(64), 0)
        loss = rule.task_signal(teachers, label, routing).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    picked = rule.select(router(student), torch.arange(64), 0).indices[:, 0]
    truth = label[:, 1, 0] if dense else label
    assert (picked == truth).float().mean() > 0.95


def test_random_rule_depends_on_instance_seed_and_epoch_alone() -> None:
    rule, scores = RoutingRule("random", k=2, seed=5), torch.zeros(2000, 6)
    index = torch.arange(2000)
    picked = rule.select(scores, index, 3).indices
    order = torch.randperm(2000)
    assert torch.equal(rule.select(scores, index[order], 3).indices, picked[order])
    assert not torch.equal(rule.select(scores, index, 4).indices, picked)
    assert (picked[:, 0] != picked[:, 1]).all()
    share = torch.bincount(picked.flatten(), minlength=6) / picked.numel()
    assert (share - 1 / 6).abs().max() < 0.03


def test_fixed_rule() -> None:
    assert RoutingRule("fixed", fixed=2).select(torch.zeros(4, 3), torch.arange(4), 0).indices.unique().tolist() == [2]


def test_padded_instances_do_not_balance() -> None:
    # near balance the term is a small difference of large ones: float32 would compare noise
    log_probs = torch.randn(6, 3, dtype=torch.float64).log_softmax(dim=1)
    rule = RoutingRule()
    weight = torch.tensor([1.0, 1, 1, 1, 0, 0], dtype=torch.float64)
    padded = Batch({}, torch.zeros(6), torch.arange(6), weight, 4.0)
    plain = Batch({}, torch.zeros(4), torch.arange(4), torch.ones(4), 4.0)
    for mode in ("KL", "CV"):
        with_padding = balance(rule.select(log_probs, padded.index, 0, weight), padded, mode)
        without = balance(rule.select(log_probs[:4], plain.index, 0, balance=mode), plain, mode)
        assert torch.allclose(with_padding, without)
    counts = rule.select(log_probs, padded.index, 0, weight).counts
    assert counts.sum() == 4


@pytest.mark.parametrize(("rule", "words"), [
    (RoutingRule(k=4), "k=4"), (RoutingRule("best"), "'best' is unknown"), (RoutingRule("fixed", fixed=3), "fixed=3"),
    (RoutingRule("random", signal="distill"), "rule topk-weighted or soft"),
])  # fmt: skip
def test_impossible_rules_are_refused(rule: RoutingRule, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rule.check(3)
