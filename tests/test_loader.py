"""Who sees which instance: ranks, micro-batches, epochs, padding."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mstdistill import ranks
from mstdistill.data.feeding.loader import Loader
from mstdistill.data.prepared.build import build
from mstdistill.data.prepared.plan import Column, Item, Plan
from mstdistill.data.prepared.store import PreparedSplit, read_card
from mstdistill.data.sources.python import DatasetSplit
from mstdistill.data.split import Subset
from mstdistill.engine.progress import Screen
from mstdistill.errors import DataError

from .conftest import TensorSplit, make_split


def plans(split: TensorSplit, world: int, batch: int, accumulate: int, epoch: int) -> list[list]:
    found = []
    for rank in range(world):
        with patch.object(ranks, "world_size", lambda: world), patch.object(ranks, "rank", lambda rank=rank: rank):
            loader = Loader(split, ["m1"], batch, shuffle=True, seed=3, accumulate=accumulate)
            found.append(list(loader.plan(epoch)))
            assert len(found[-1]) == loader.steps_per_epoch
    return found


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), world=st.integers(1, 4), batch=st.integers(1, 7), accumulate=st.integers(1, 3),
       epoch=st.integers(0, 3))  # fmt: skip
def test_every_instance_counts_once(count: int, world: int, batch: int, accumulate: int, epoch: int) -> None:
    split = make_split(count)
    by_rank = plans(split, world, batch, accumulate, epoch)
    seen, wide = [], Loader(split, ["m1"], batch * world * accumulate, shuffle=True, seed=3)
    for steps, single in zip(zip(*by_rank, strict=True), wide.plan(epoch), strict=True):
        in_step = []
        for micros in zip(*steps, strict=True):
            sizes = [len(micro.index) for micro in micros]
            assert max(sizes) - min(sizes) <= 1  # none works much longer than the others
            assert sizes == [max(micro.real, 1) for micro in micros]  # and none is left out
            assert len({micro.share for micro in micros}) == 1
            in_step += [i for micro in micros for i in micro.index[: micro.real]]
        assert sum(micros[0].share for micros in zip(*steps, strict=True)) == pytest.approx(1.0)
        # a step over ranks and micro-batches holds what one wide batch holds, in its order
        assert in_step == list(single[0].index)
        assert steps[0][0].normaliser * world == len(in_step)
        seen += in_step
    assert sorted(seen) == list(range(count))


def test_epochs_differ_and_an_epoch_resumes_in_its_middle() -> None:
    loader = Loader(make_split(40), ["m1"], 8, shuffle=True, seed=1, accumulate=2)
    whole = [batch.index for batch in loader.epoch(5)]
    rest = [batch.index for batch in loader.epoch(5, start_step=1)]
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))
    assert not np.array_equal(loader.order(0), loader.order(1))


def test_background_workers_give_the_same_batches() -> None:
    split = make_split(20)
    here, there = (Loader(split, ["m1"], 8, shuffle=True, workers=w) for w in (0, 2))
    for a, b in zip(here.epoch(), there.epoch(), strict=True):
        assert torch.equal(a.inputs["m1"], b.inputs["m1"])
        assert torch.equal(a.label, b.label)


class Toy(torch.utils.data.Dataset):
    def __init__(self, noisy: bool = False, ragged: bool = False) -> None:
        self.noisy, self.ragged = noisy, ragged

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict:
        x = torch.full((3 + (i if self.ragged else 0),), float(i))
        return {"m1": x + (torch.rand(()) if self.noisy else 0.0), "label": i % 2}


def test_own_data_sets_and_augmented_ones() -> None:
    plain = DatasetSplit(Toy())
    assert plain.deterministic
    assert not DatasetSplit(Toy(noisy=True)).deterministic
    inputs, label = Subset(plain, np.array([5, 2])).fetch(np.array([1]), ["m1"])
    assert inputs["m1"].tolist() == [[2.0, 2.0, 2.0]]
    assert label.tolist() == [0]
    with pytest.raises(DataError, match="no modality 'm3'; did you mean m1"):
        plain.fetch(np.array([0]), ["m3"])
    with pytest.raises(DataError, match="modality lengths differ"):
        DatasetSplit(Toy(ragged=True)).fetch(np.arange(3), ["m1"])


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: s.inputs["m1"].__setitem__((4, 0), float("nan")), "NaN or Inf in modality 'm1' of instance 4"),
    (lambda s: s.inputs["m1"].__setitem__((2, 1), float("inf")), "NaN or Inf in modality 'm1' of instance 2"),
    (lambda s: s.label.__setitem__(7, 3), "label 3 of instance 7 is out of range"),
    (lambda s: s.label.__setitem__(1, -1), "label -1 of instance 1 is out of range"),
])  # fmt: skip
def test_bad_values_are_named(change: object, words: str) -> None:
    split = make_split(9)
    change(split)  # type: ignore[operator]
    with pytest.raises(DataError, match=words):
        list(Loader(split, ["m1"], 4, num_classes=3, name="toy").epoch())


@pytest.mark.parametrize("ahead", [{"threads": 2}, {"workers": 2}])
def test_batches_fetched_ahead_are_the_same(ahead: dict[str, int], tmp_path: Path) -> None:
    """Bytes travel as bytes and become the floats that `fetch` gives, in the plan's order, epoch after epoch."""
    rng = np.random.default_rng(0)
    columns = {"a": Column((3, 4), "uint8", "channel", 0), "b": Column((2,), "float16")}
    rows = [{"a": rng.integers(0, 255, (3, 4), dtype=np.uint8), "b": rng.random(2)} for _ in range(37)]
    plan = Plan("toy", 1, columns, [Item(str(i), i, i % 3) for i in range(37)], rows.__getitem__, {})
    folder = build(tmp_path / "out", plan, Screen(quiet=True), 1)
    split = Subset(PreparedSplit(folder, "all", read_card(folder)), np.arange(35)[::-1].copy())
    plain, other = (Loader(split, ["a", "b"], 8, shuffle=True, seed=3, **extra) for extra in ({}, ahead))
    cpu = torch.device("cpu")
    for epoch in range(3):
        pairs = list(zip(plain.epoch(epoch, epoch), other.epoch(epoch, epoch), strict=True))
        assert len(pairs) == 5 - epoch
        for one, two in pairs:
            assert two.inputs["a"].dtype == torch.uint8
            ready = two.to(cpu)
            assert torch.equal(one.index, two.index)
            assert torch.equal(one.label, ready.label)
            wanted, _ = split.fetch(one.index.numpy(), ["a", "b"])
            for name in wanted:
                assert ready.inputs[name].dtype == torch.float32
                assert torch.equal(ready.inputs[name], wanted[name])
                assert torch.equal(one.to(cpu).inputs[name], wanted[name])
            assert torch.equal(ready.to(cpu).inputs["a"], wanted["a"])  # scaled once
    if "workers" in ahead:
        assert other._processes is not None
        assert other._processes[1]._iterator is not None  # the same processes for every epoch


def test_a_mistake_in_a_thread_reaches_the_user(tmp_path: Path) -> None:
    split = make_split(20)
    split.inputs["m1"][7] = float("nan")
    loader = Loader(split, ["m1"], 4, threads=2, name="toy train")
    with pytest.raises(DataError, match="toy train: NaN or Inf in modality 'm1' of instance 7"):
        list(loader.epoch())
