"""Specialised teachers: shared forwards, stacked masks, taps, caches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mstdistill.data.feeding.batch import Batch
from mstdistill.data.feeding.loader import Loader
from mstdistill.errors import ConfigError
from mstdistill.teachers import cache_shards
from mstdistill.teachers.cache import fingerprint
from mstdistill.teachers.cache_shards import build_cache
from mstdistill.teachers.ensemble import Ensemble
from mstdistill.teachers.mask import MaskNet1d, plan_mask
from mstdistill.teachers.tap import Teacher, discover

from .conftest import MLP, make_split

CPU = torch.device("cpu")


class Skip(nn.Module):
    """Its input skips over the tap: rows of the old batch meet the grown one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.fc2(torch.relu(self.fc1(x))) + x)


class Pair(nn.Module):
    """A submodule that returns a tuple, as transformers' layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.ModuleList([nn.Linear(6, 8)]), nn.Linear(8, 3)
        self.layer = Tupled()

    def forward(self, x: Tensor) -> Tensor:
        feature, _ = self.layer(x)
        return self.head(feature)


class Tupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return self.fc(x), "extra"


def masks_for(
    module: nn.Module, inputs: dict[str, Tensor], view: tuple[str, ...], taps: tuple[str, ...]
) -> list[nn.Module]:
    shapes = discover(module, inputs, view, taps, "teacher")
    built = [plan_mask(tap, shapes[tap], hidden=3).build().double() for tap in taps]
    for mask in built:
        for p in mask.parameters():
            nn.init.normal_(p, std=0.7)
    return built


def ensemble_of(mode: str, shared: bool | None, teachers: list[Teacher], inputs: dict[str, Tensor]) -> Ensemble:
    torch.manual_seed(1)
    masks = [masks_for(t.module, inputs, t.modalities, t.taps) for t in teachers]
    found = Ensemble(teachers, masks, mode)
    if shared is not None:
        found.shared = dict.fromkeys(range(len(teachers)), shared)
    return found.eval()


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    split = make_split(9, dtype=torch.float64)
    return split.inputs


@pytest.fixture
def teachers() -> list[Teacher]:
    torch.manual_seed(0)
    return [
        Teacher("both", MLP(11, 8, 7, 3).double(), ("m1", "m2"), ("fc2", "fc1")),
        Teacher("other", MLP(5, 8, 7, 3).double(), ("m2",), ("fc1", "fc2", "fc3")),
        Teacher("plain", MLP(5, 8, 7, 3).double(), ("m2",)),
    ]


@pytest.mark.parametrize("mode", ["independent", "cumulative"])
def test_shared_forward_equals_separate_ones(mode: str, teachers: list[Teacher], inputs: dict[str, Tensor]) -> None:
    together = ensemble_of(mode, None, teachers, inputs)
    apart = ensemble_of(mode, False, teachers, inputs)
    weight = torch.randn(9, 6, 3, dtype=torch.float64)
    results = []
    for ensemble in (together, apart):
        logits = ensemble(inputs)
        (logits * weight).sum().backward()
        results.append((logits.detach(), [p.grad for p in ensemble.parameters()]))
    assert together.shared == {0: True, 1: True}
    assert together.names == ["both.fc2", "both.fc1", "other.fc1", "other.fc2", "other.fc3", "plain"]
    assert torch.allclose(results[0][0], results[1][0], rtol=0, atol=1e-12)
    for found, wanted in zip(results[0][1], results[1][1], strict=True):
        assert found is not None
        assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-12)
    assert torch.allclose(results[0][0][:, 5], teachers[2].logits(inputs))


def test_stacked_masks_differ_from_single_ones(teachers: list[Teacher], inputs: dict[str, Tensor]) -> None:
    alone, stacked = (ensemble_of(mode, None, teachers, inputs)(inputs) for mode in ("independent", "cumulative"))
    assert torch.equal(alone[:, 0], stacked[:, 0])
    assert not torch.allclose(alone[:, 1], stacked[:, 1])


def test_a_network_that_joins_rows_runs_separately(inputs: dict[str, Tensor]) -> None:
    teachers = [Teacher("skip", Skip().double(), ("m1",), ("fc1", "fc2"))]
    found = ensemble_of("independent", None, teachers, inputs)
    wanted = ensemble_of("independent", False, teachers, inputs)
    one = {name: x[:1] for name, x in inputs.items()}
    assert torch.equal(found(one), wanted(one))
    assert found.shared == {}  # one row broadcasts and shows nothing
    assert torch.equal(found(inputs), wanted(inputs))
    assert found.shared == {0: False}


class Centred(nn.Module):
    """Logits of an instance depend on its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x - x.mean(dim=0))


@pytest.mark.parametrize("mode", ["independent", "cumulative"])
@pytest.mark.parametrize("k", [1, 2, 7])
def test_chosen_members_alone_equal_all_of_them(
    mode: str, k: int, teachers: list[Teacher], inputs: dict[str, Tensor]
) -> None:
    teachers = [*teachers, Teacher("centred", Centred().double(), ("m1",), ("fc1",))]
    ensemble = ensemble_of(mode, None, teachers, inputs)
    indices = torch.stack([torch.randperm(7)[:k] for _ in range(9)])
    rows: dict[str, int] = {}
    for teacher in teachers:
        teacher.module.register_forward_hook(
            lambda _, args, out, name=teacher.name: rows.update({name: rows.get(name, 0) + len(args[0])})
        )
    wanted = ensemble(inputs).gather(1, indices.unsqueeze(2).expand(-1, -1, 3))
    assert torch.allclose(ensemble.chosen(inputs, indices), wanted, rtol=0, atol=1e-12)
    assert ensemble.apart == {0: True, 1: True, 2: True, 3: False}
    rows.clear()
    ensemble.chosen(inputs, indices)
    for name, members in (("both", (0, 1)), ("other", (2, 3, 4)), ("plain", (5,))):
        own = torch.isin(indices, torch.tensor(members)).any(dim=1)
        assert rows.get(name, 0) == int(own.sum()), name  # once each, and nobody else
    one = {name: x[:1] for name, x in inputs.items()}
    assert torch.allclose(
        ensemble.chosen(one, indices[:1]), ensemble(one).gather(1, indices[:1, :, None].expand(-1, -1, 3))
    )
    rows.clear()
    ensemble.chosen(inputs, indices)
    assert rows.get("centred", 0) == (9 if (indices == 6).any() else 0)


def test_sixty_four_specialised_teachers(inputs: dict[str, Tensor]) -> None:
    """16 teachers with 4 masks each, one chosen an instance: 9 of 576 forwards, and the teachers' weights once."""
    torch.manual_seed(5)
    teachers = [Teacher(f"t{n}", nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)], nn.Linear(6, 3)).double(), ("m1",),
                        ("0", "1", "2", "3")) for n in range(16)]  # fmt: skip
    ensemble = ensemble_of("independent", None, teachers, inputs)
    assert len(ensemble.members) == 64
    indices = torch.randint(64, (9, 1))
    wanted = ensemble(inputs).gather(1, indices.unsqueeze(2).expand(-1, -1, 3))
    assert torch.allclose(ensemble.chosen(inputs, indices), wanted, rtol=0, atol=1e-12)
    held = sum(p.numel() for teacher in teachers for p in teacher.module.parameters())
    assert held == 16 * (4 * (6 * 6 + 6) + 6 * 3 + 3)
    assert not any(p.requires_grad for teacher in teachers for p in teacher.module.parameters())


def test_tuple_outputs_and_no_teacher_gradient(inputs: dict[str, Tensor]) -> None:
    teachers = [Teacher("pair", Pair().double(), ("m1",), ("layer",))]
    ensemble = ensemble_of("independent", None, teachers, inputs)
    ensemble(inputs).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in teachers[0].module.parameters())
    assert all(p.grad is not None for p in ensemble.parameters())
    assert not teachers[0].module.training
    assert set(ensemble.state_dict()) == {f"masks.0.{name}" for name in ensemble.masks[0].state_dict()}


def test_unknown_and_unreached_taps_are_named(inputs: dict[str, Tensor]) -> None:
    module = Pair().double()
    with pytest.raises(ConfigError, match=r"no tap 'layr'; did you mean layer"):
        discover(module, inputs, ("m1",), ("layr",), "teacher 'a'")
    with pytest.raises(ConfigError, match="inner"):
        discover(module, inputs, ("m1",), ("inner",), "teacher 'a'")


def test_mask_budget() -> None:
    assert plan_mask("fc", (596,)).parameters > 100_000_000
    small = plan_mask("fc", (596,), max_parameters=5_000_000)
    assert small.parameters <= 5_000_000
    assert small.hidden % 3 == 0
    with pytest.raises(ConfigError, match="max_parameters"):
        plan_mask("fc", (596,), max_parameters=10)
    with pytest.raises(ConfigError, match="multiple"):
        MaskNet1d(4, 5, 3)


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float64", 0.0), ("float32", 1e-6), ("float16", 2e-3), ("bfloat16", 2e-2)]
)
@pytest.mark.parametrize("several", [False, True])
def test_cache_holds_the_live_logits(
    dtype: str, bound: float, several: bool, tmp_path: Path, teachers: list[Teacher], inputs: dict[str, Tensor]
) -> None:
    split = make_split(9, dtype=torch.float64)
    ensemble = ensemble_of("independent", None, teachers, inputs)
    loader = Loader(split, ["m1", "m2"], 4)

    def live(batch: Batch) -> Tensor:
        return ensemble(batch.inputs)

    mark = fingerprint(("a",), {"masks": ensemble})
    cache = build_cache(tmp_path / "c", mark, live, loader, (4, 3), CPU, dtype, several=several)
    index = torch.tensor([8, 0, 3])
    found, wanted = cache.gather(index).double(), ensemble(inputs)[index]
    said, meant = (x.sigmoid() if several else x.softmax(dim=2) for x in (found, wanted))  # several: each by itself
    error = (said - meant).abs().max()
    assert error <= bound + 1e-15
    cache._resident = None  # and straight from the memory-mapped file
    assert torch.equal(cache.gather(index).double(), found)
    with torch.no_grad():
        next(ensemble.parameters()).add_(1e-6)
    assert fingerprint(("a",), {"masks": ensemble}) != mark


def test_only_what_is_missing_or_damaged_of_a_cache_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three shards of 3 rows; a build killed in its third, a flipped bit, a lost digest, other teachers."""
    monkeypatch.setattr(cache_shards, "SHARD_BYTES", 3 * 5 * 2 * 8)
    loader = Loader(make_split(9, dtype=torch.float64), ["m1", "m2"], 2)
    asked: list[int] = []
    said: list[str] = []

    def live(batch: Batch) -> Tensor:
        asked.extend(batch.index.tolist())
        if len(asked) > limit:
            raise KeyboardInterrupt
        return torch.stack([batch.inputs["m2"], batch.inputs["m2"] * 2], dim=1)

    def build(mark: str = "a") -> torch.Tensor:
        asked.clear()
        said.clear()
        return build_cache(tmp_path / "c", mark, live, loader, (2, 5), CPU, "float64", say=said.append).gather(
            torch.arange(9)
        )

    limit = 7
    with pytest.raises(KeyboardInterrupt):
        build()
    limit = 100
    whole = build()
    assert asked == [6, 7, 8]
    assert not said
    shard = tmp_path / "c" / "shard-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    assert torch.equal(build(), whole)
    assert asked == [3, 4, 5]
    assert "shard-00001.npy is damaged" in said[0]
    (tmp_path / "c" / "shard-00002.sha256").unlink()
    assert torch.equal(build(), whole)
    assert asked == [6, 7, 8]
    assert torch.equal(build("b"), whole)
    assert asked == list(range(9))
    assert "of other teachers, masks or data" in said[0]
    (tmp_path / "c" / "cache.json").write_text("{")
    assert torch.equal(build("b"), whole)
    assert "damaged" in said[0]
