"""Weights by what teachers say, and their calibration."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mstdistill.certainty import CERTAINTIES, calibrated, calibration_losses, log_weights
from mstdistill.routing import Router, RoutingRule


@pytest.mark.parametrize("by", CERTAINTIES)
@settings(deadline=None)
@given(seed=st.integers(0, 99), teachers=st.integers(1, 5), sharpness=st.floats(0, 50))
def test_weights_are_a_distribution_that_ignores_shifts(by: str, seed: int, teachers: int, sharpness: float) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, teachers, 5, generator=g, dtype=torch.float64) * 8
    temperature = torch.rand(teachers, generator=g, dtype=torch.float64) + 0.5
    found = log_weights(logits, temperature, by, sharpness).exp()
    total = float(teachers) if by == "product" else 1.0
    torch.testing.assert_close(found.sum(dim=1), torch.full((6,), total, dtype=torch.float64))
    shifted = log_weights(logits + 30 * torch.randn(6, teachers, 1, generator=g), temperature, by, sharpness).exp()
    torch.testing.assert_close(found, shifted)
    if sharpness == 0:
        torch.testing.assert_close(found, torch.full_like(found, total / teachers))


def test_the_surest_counts_most_and_the_odd_one_out_least() -> None:
    sure, unsure, other = torch.tensor([9.0, 0, 0]), torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 9, 0])
    ones = torch.ones(2)
    for by in ("entropy", "margin"):
        first, second = log_weights(torch.stack([sure, unsure])[None], ones, by, 4.0)[0]
        assert first > second
    three = log_weights(torch.stack([sure, sure, other])[None], torch.ones(3), "agreement", 4.0)[0]
    assert three[0] == three[1] > three[2]
    # a boastful teacher, once calibrated, isn't believed more than an honest one
    boast = torch.stack([sure, sure / 9])[None]
    torch.testing.assert_close(
        log_weights(boast, torch.tensor([9.0, 1.0]), "entropy", 4.0).exp(), torch.full((1, 2), 0.5)
    )


@pytest.mark.parametrize("by", CERTAINTIES)
def test_dense_logits_count_by_their_mean_over_pixels(by: str) -> None:
    torch.manual_seed(0)
    pixel = torch.randn(4, 3, 5, dtype=torch.float64)
    dense = pixel[..., None, None].expand(-1, -1, -1, 2, 3)
    ones = torch.ones(3)
    torch.testing.assert_close(log_weights(dense, ones, by, 3.0), log_weights(pixel, ones, by, 3.0))


def test_calibration_finds_the_temperature_and_leaves_out_what_has_no_label() -> None:
    torch.manual_seed(0)
    honest = torch.randn(4000, 4, dtype=torch.float64)
    label = torch.distributions.Categorical(logits=honest).sample()
    label[:50] = -1
    logits = torch.stack([honest, 3 * honest, honest / 2], dim=1)
    weight = torch.ones(4000)
    sums = calibration_losses(logits[:1000], label[:1000], weight[:1000])
    sums = sums + calibration_losses(logits[1000:], label[1000:], weight[1000:])  # batches and ranks add up
    assert sums[0, -1] == 3950
    found = calibrated(sums)
    torch.testing.assert_close(found, torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64), rtol=0.1, atol=0)
    at_one = F.cross_entropy(honest[50:], label[50:], reduction="sum")
    torch.testing.assert_close(sums[0, 150], at_one)  # the grid's middle is 1
    assert calibrated(torch.zeros(2, 302)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("by", CERTAINTIES)
def test_a_judged_routing_mixes_calibrated_logits_and_shares_say_so(by: str) -> None:
    torch.manual_seed(0)
    student, teachers, temperature = torch.randn(8, 4), torch.randn(8, 3, 4), torch.tensor([0.5, 1.0, 3.0])
    rule = RoutingRule(by, sharpness=6.0)
    assert rule.mixes
    assert rule.judges
    assert not rule.needs_chosen_alone
    routing = rule.judged(rule.select(Router(4, 3)(student), torch.arange(8), 0), teachers, temperature)
    weights = log_weights(teachers, temperature, by, 6.0).exp()
    mixed = (weights.unsqueeze(2) * teachers / temperature[:, None]).sum(dim=1)
    wanted = F.kl_div((student / 4).log_softmax(1), (mixed / 4).softmax(1), reduction="none").sum(1) * 16
    torch.testing.assert_close(rule.distillation(student, teachers, routing, 4.0).loss, wanted)
    torch.testing.assert_close(rule.shares(routing, torch.ones(8)).sum(), torch.tensor(8.0))


def test_independent_teachers_multiplied_are_better_than_averaged() -> None:
    """Two teachers that each see half of what tells the class: by Bayes' rule their probabilities multiply."""
    torch.manual_seed(0)
    label = torch.randint(4, (4000,))
    seen = torch.randn(2, 4000, 4) * 1.5 + 2.0 * F.one_hot(label, 4)
    teachers = (seen * 2.0 / 1.5**2).transpose(0, 1)  # [N, 2, C] log-likelihoods
    mixed = teachers.sum(dim=1)
    averaged = teachers.softmax(dim=2).mean(dim=1)
    best = F.cross_entropy(mixed, label)
    assert best < F.nll_loss(averaged.log(), label) - 0.05
