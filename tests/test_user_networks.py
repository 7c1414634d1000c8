"""Networks as people bring them: what they return, what of them learns, what they remember, what their norms see."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from mstdistill import Teacher, distill
from mstdistill.engine.batch_norm import take_any_batch, take_back
from mstdistill.errors import ConfigError
from mstdistill.pipeline import Result
from mstdistill.teachers.ensemble import Ensemble

SETTINGS: dict[str, Any] = {
    "run": {"trackers": [], "page": False}, "batch_size": 16, "cotrain": {"epochs": 1}, "specialise": {"epochs": 1},
    "distill": {"epochs": 1}, "mask": {"hidden_dim_factor": 1},
}  # fmt: skip


def items(count: int, seed: int = 0) -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(seed)
    return [{"a": torch.randn(6, generator=g), "b": torch.randn(4, generator=g), "label": i % 3} for i in range(count)]


def mlp(width: int, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, classes))


def go(out: Path, student: nn.Module | None = None, teacher: nn.Module | None = None, taps: tuple[str, ...] = (),
       count: int = 64, **more: Any) -> Result:  # fmt: skip
    student = mlp(6) if student is None else student
    made = Teacher("t", mlp(4) if teacher is None else teacher, ("b",), taps, output=more.pop("output", None))
    return distill(student, [made], items(count), items(24, 1), "a", test=items(24, 2), out=out, quiet=True,
                   settings={**SETTINGS, **more.pop("settings", {})}, **more)  # fmt: skip


class Wrapped(nn.Module):
    """A network whose output is put into something."""

    def __init__(self, inner: nn.Module, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.pack = inner, pack

    def forward(self, x: Tensor) -> Any:
        logits = self.inner(x)
        return self.pack(logits, x)


@dataclass
class Answer:
    scores: Tensor
    seen: Tensor


Named = namedtuple("Named", "scores seen")

# What a network returns, and how its logits are named where that is needed.
OUTPUTS: list[tuple[str, Callable[[Tensor, Tensor], Any], str | int | None]] = [
    ("a tuple", lambda y, x: (y, x), None),
    ("a tuple, the logits last", lambda y, x: (x, y), None),
    ("a list", lambda y, x: [y], None),
    ("a named tuple", lambda y, x: Named(y, x), None),
    ("a dict with logits", lambda y, x: {"logits": y, "other": y + 1}, None),
    ("a dict", lambda y, x: OrderedDict(seen=x, scores=y), None),
    ("a dataclass", lambda y, x: Answer(y, x), None),
    ("transformers' output", lambda y, x: SequenceClassifierOutput(logits=y, hidden_states=(x,)), None),
    ("two of one shape, named", lambda y, x: {"main": y, "aux": 2 * y}, "main"),
    ("two of one shape, by place", lambda y, x: (2 * y, y), 1),
    ("deep within", lambda y, x: {"heads": [2 * y, {"main": y}]}, "heads.1.main"),
    ("beside numbers", lambda y, x: (0.5, y, None, "word"), None),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights of a run whose networks return plain tensors."""
    return weights(go(tmp_path_factory.mktemp("plain"), Wrapped(mlp(6), lambda y, x: y),
                      Wrapped(mlp(4), lambda y, x: y), ("inner.0",)).student)  # fmt: skip


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in module.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("pack", "named"), [case[1:] for case in OUTPUTS], ids=[case[0] for case in OUTPUTS])
def test_logits_are_found_in_what_networks_return(
    pack: Callable[[Tensor, Tensor], Any], named: str | int | None, plain: dict[str, Tensor], tmp_path: Path
) -> None:
    """They train to the same weights, bit for bit, as networks that return the tensor alone."""
    result = go(
        tmp_path, Wrapped(mlp(6), pack), Wrapped(mlp(4), pack), ("inner.0",), output=named, student_output=named
    )
    assert same(weights(result.student), plain)


class Silent(nn.Module):
    """Logits that nothing can learn from."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = self.inner(x)
            return found


class Rule(nn.Module):
    """A network without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] * 2


class Strange(nn.Module):
    """Remembers what no checkpoint can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp(4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return found

    def get_extra_state(self) -> Any:
        return {1, 2}

    def set_extra_state(self, state: Any) -> None:
        pass


class Overwriting(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x.mul_(2))
        return found


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def scripted(width: int = 4) -> nn.Module:
    return torch.jit.script(mlp(width))


class InTraining(nn.Module):
    """Returns a tensor in evaluation and something else in training."""

    def __init__(self, width: int, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.pack = mlp(width), pack

    def forward(self, x: Tensor) -> Any:
        logits = self.inner(x)
        return self.pack(logits, x) if self.training else logits


class Moving(InTraining):
    """Puts its logits at another place in training."""

    def forward(self, x: Tensor) -> Any:
        logits = self.inner(x)
        return (logits, x) if self.training else (x, logits, 1)


class Holding(nn.Module):
    """Keeps what can't be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.lock = mlp(6), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return found


# Networks that can't be distilled (student, teacher, taps), and the words of the one line that says so.
REFUSED: list[tuple[str, Callable[[], nn.Module] | None, Callable[[], nn.Module] | None, tuple[str, ...], str]] = [
    ("a frozen student", lambda: frozen(mlp(6)), None, (), "no parameter gets a gradient"),
    ("a student under no_grad", lambda: Silent(6), None, (), "no parameter gets a gradient"),
    ("a student without parameters", Rule, None, (), "no parameter gets a gradient"),
    ("two that could be the logits", lambda: Wrapped(mlp(6), lambda y, x: (y, 2 * y)), None, (), "several could be"),
    ("a teacher of two", None, lambda: Wrapped(mlp(4), lambda y, x: (y, 2 * y)), (), 'Teacher(..., output="name or'),
    ("no tensor", lambda: Wrapped(mlp(6), lambda y, x: None), None, (), "none could be"),
    ("a teacher of no tensor", None, lambda: Wrapped(mlp(4), lambda y, x: {"a": 1}), (), "without tensors"),
    ("other classes", None, lambda: mlp(4, 5), (), "gives logits [16, 5]; the task has 3 classes"),
    ("whole numbers", None, lambda: Wrapped(mlp(4), lambda y, x: y.long()), (), "floating point"),
    ("a row too few", None, lambda: Wrapped(mlp(4), lambda y, x: y[1:]), (), "for a batch of"),
    ("NaN from the start", None, lambda: Wrapped(mlp(4), lambda y, x: y * float("nan")), (), "gives NaN before"),
    ("its input overwritten", None, lambda: Overwriting(4), (), "changes its input in place"),
    ("a set in its state", None, Strange, (), "a checkpoint holds tensors"),
    ("a tap under no_grad", None, lambda: Silent(4), ("inner.0",), "no gradient comes from its logits to tap"),
    ("a tap in compiled code", None, scripted, ("0",), "inside of compiled code"),
    ("an unknown tap", None, lambda: mlp(4), ("9",), "9"),
    (
        "a function",
        lambda: torch.relu,
        None,
        (),
        "student is a builtin_function_or_method; a torch.nn.Module is wanted",
    ),
    ("a class", None, lambda: nn.Flatten, (), "teacher 't' is the class Flatten; give a network made of it"),
    ("no values", None, lambda: mlp(4).to("meta"), (), "weights on the meta device, without values"),
    ("sparse logits", None, lambda: Wrapped(mlp(4), lambda y, x: y.to_sparse()), (), "to_dense()"),
    ("an axis too many", lambda: Wrapped(mlp(6), lambda y, x: y[:, None]), None, (), "none could be logits"),
    ("two in training", lambda: InTraining(6, lambda y, x: (y, 2 * y)), None, (), "in training returns a tuple"),
    ("elsewhere in training", None, lambda: Moving(4, lambda y, x: y), (), "at another place than in evaluation (1)"),
    ("NaN in training", lambda: InTraining(6, lambda y, x: y / 0 * 0), None, (), "gives NaN in training"),
    ("no copy", Holding, None, (), "student can't be copied, as its comparison wants (cannot pickle"),
    ("another width", None, lambda: mlp(7), (), "teacher 't' can't take"),
]


@pytest.mark.parametrize(("student", "teacher", "taps", "words"), [case[1:] for case in REFUSED],
                         ids=[case[0] for case in REFUSED])  # fmt: skip
def test_what_cannot_be_distilled_is_one_line_before_the_first_step(
    student: Callable[[], nn.Module] | None, teacher: Callable[[], nn.Module] | None, taps: tuple[str, ...],
    words: str, tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(ConfigError) as error:
        go(tmp_path, student and student(), teacher and teacher(), taps)
    assert words in str(error.value)
    assert not list(tmp_path.glob("*/checkpoints"))


@pytest.mark.parametrize("name", ["", 1.5, True, (0,)])
def test_a_place_is_a_name_or_an_index(name: Any, tmp_path: Path) -> None:
    for more in ({"output": name}, {"student_output": name}):
        with pytest.raises(ConfigError, match="where the logits are is an index"):
            go(tmp_path, **more)


@pytest.mark.parametrize(("pack", "named"), [
    (lambda y, x: (y, 2 * y), 0), (lambda y, x: (x, y), None), (lambda y, x: {"aux": 2 * y, "logits": y}, None),
])  # fmt: skip
def test_a_network_may_return_more_in_training(
    pack: Callable[[Tensor, Tensor], Any], named: int | None, plain: dict[str, Tensor], tmp_path: Path
) -> None:
    result = go(tmp_path, InTraining(6, pack), InTraining(4, pack), ("inner.0",), output=named, student_output=named)
    assert same(weights(result.student), plain)


def test_scripted_networks_train(tmp_path: Path) -> None:
    student, teacher = scripted(6), scripted(4)
    before = weights(student)
    assert not same(weights(go(tmp_path, student, teacher).student), before)


@pytest.mark.parametrize("method", ["mst", "kd", "crd"])
@pytest.mark.parametrize(
    "teacher", [lambda: frozen(mlp(4)), lambda: Silent(4), Rule], ids=["frozen", "no_grad", "rule"]
)
def test_a_teacher_that_cannot_learn_is_used_as_it_is(
    teacher: Callable[[], nn.Module], method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = teacher()
    before = weights(module)
    if method == "crd" and not before:
        return  # it wants a layer's features
    made = Teacher("t", module, ("b",))
    result = distill(mlp(6), [made], items(64), items(24, 1), "a", out=tmp_path,
                     settings={**SETTINGS, "method": method, "baseline": {"teacher": "t"}})  # fmt: skip
    said = "teacher t: nothing in it learns" in capsys.readouterr().out
    assert said or (method != "mst" and not any(p.requires_grad for p in module.parameters()))
    assert same(weights(module), before)
    assert all(p.grad is None for p in module.parameters())
    assert result.summary["networks"]


def test_what_is_frozen_in_part_stays(tmp_path: Path) -> None:
    student, teacher = mlp(6), mlp(4)
    student[0].requires_grad_(False)
    teacher[0].requires_grad_(False)
    first = weights(student), weights(teacher)
    go(tmp_path, student, teacher, ("0",))
    for module, before in zip((student, teacher), first, strict=True):
        after = weights(module)
        assert torch.equal(after["0.weight"], before["0.weight"])
        assert not torch.equal(after["2.weight"], before["2.weight"])


class Counting(nn.Module):
    """Remembers how often it was trained, as a tensor or as JSON."""

    def __init__(self, width: int, tensor: bool) -> None:
        super().__init__()
        self.inner, self.tensor, self.steps = mlp(width), tensor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        found: Tensor = self.inner(x)
        return found

    def get_extra_state(self) -> Any:
        return torch.tensor(self.steps) if self.tensor else {"steps": self.steps, "notes": ["a", 1.5]}

    def set_extra_state(self, state: Any) -> None:
        self.steps = int(state if self.tensor else state["steps"])


class Cut(Exception):
    """What ends a run in the middle of a stage."""


@pytest.mark.parametrize("tensor", [True, False])
def test_extra_states_are_kept(tensor: bool, tmp_path: Path) -> None:
    """In checkpoints (a run is cut in each stage and goes on) and in results (a run is called again)."""
    settings = {"distill": {"epochs": 2}, "run": {"trackers": [], "page": False, "checkpoint_steps": 1}}

    def cut_in(wanted: str) -> Callable[..., None]:
        def observe(stage: str, step: int, _: Any) -> None:
            if (stage, step) == (wanted, 2):
                raise Cut

        return observe

    def run(out: str, **more: Any) -> dict[str, Any]:
        student, teacher = Counting(6, tensor), Counting(4, tensor)
        result = go(tmp_path / out, student, teacher, ("inner.0",), settings=settings, **more)
        return {"steps": (student.steps, teacher.steps), **weights(result.student.inner)}

    whole = run("whole")
    assert whole["steps"] == (4 + 2 * 4, 4)
    for stage in ("cotrain", "distill"):
        with pytest.raises(Cut):
            run("cut", observe=cut_in(stage))
    for found in (run("cut"), run("cut")):
        assert found.pop("steps") == whole["steps"]
        assert same(found, {name: x for name, x in whole.items() if name != "steps"})


class Twice(nn.Module):
    """Runs one block twice in a forward."""

    def __init__(self, other: int = 4) -> None:
        super().__init__()
        self.first, self.block, self.second = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, other)
        self.last = nn.Linear(other, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(torch.relu(self.block(self.first(x))))
        found: Tensor = self.last(torch.relu(self.second(x)))
        return found


class Times(nn.Module):
    """A mask that is easily told."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


@torch.no_grad()
@pytest.mark.parametrize("mode", ["independent", "cumulative"])
def test_a_tap_that_runs_twice_is_masked_each_time(mode: str) -> None:
    """In a forward of its own, in one that members share, and where a router chose."""

    def by_hand(block: float, second: float) -> Tensor:
        x = block * net.block(torch.relu(block * net.block(net.first(inputs["b"]))))
        found: Tensor = net.last(torch.relu(second * net.second(x)))
        return found

    net, inputs = Twice(), {"b": torch.randn(9, 4)}
    ensemble = Ensemble([Teacher("t", net, ("b",), ("block", "second"))], [[Times(2), Times(3)]], mode)
    expected = torch.stack([by_hand(2, 1), by_hand(1 if mode == "independent" else 2, 3)], dim=1)
    assert torch.allclose(ensemble(inputs), expected, atol=1e-6)
    assert ensemble.shared == {0: True}
    chosen = torch.arange(9)[:, None] % 2
    picked = ensemble.chosen(inputs, chosen)[:, 0]
    assert torch.allclose(picked, expected[torch.arange(9), chosen[:, 0]], atol=1e-6)
    ensemble.shared = {0: False}
    assert torch.allclose(ensemble(inputs), expected, atol=1e-6)


def test_a_teacher_whose_tap_runs_twice_specialises(tmp_path: Path) -> None:
    result = go(tmp_path, None, Twice(), ("block",))
    assert "specialise" in " ".join(result.summary["stages"])


def normed(width: int, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8, **options), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}])
@pytest.mark.parametrize("method", ["mst", "kd", "crd", "ofa"])
def test_a_last_batch_of_one_row_trains(options: dict[str, Any], method: str, tmp_path: Path) -> None:
    if method != "mst" and options:
        return  # one kind of norm says enough of each method
    student, teacher = normed(6, **options), normed(4, **options)
    kinds = [type(module) for module in student.modules()]
    taps = ("0",) if method in ("mst", "crd", "ofa") else ()
    result = go(tmp_path, student, teacher, taps, count=33, settings={"method": method, "baseline": {"teacher": "t"}})
    assert [type(module) for module in student.modules()] == kinds  # given back as they came
    assert all(torch.isfinite(x).all() for x in result.student.state_dict().values())


def test_the_rule_for_a_single_row() -> None:
    """It is normalised by the running figures, which it leaves; more rows are PyTorch's own, bit for bit."""
    norm = nn.BatchNorm1d(4)
    nn.init.uniform_(norm.weight)
    norm(torch.randn(16, 4))
    known, x = copy.deepcopy(norm), torch.randn(1, 4)
    changed = take_any_batch(norm)
    assert torch.equal(norm.train()(x), known.eval()(x))
    assert same(weights(norm), weights(known))
    many = torch.randn(5, 4)
    assert torch.equal(norm(many), known.train()(many))
    assert same(weights(norm), weights(known))
    take_back(changed)
    assert type(norm) is nn.BatchNorm1d
    with pytest.raises(ValueError, match="more than 1 value"):
        norm.train()(x)


def test_trials_leave_nothing_behind(tmp_path: Path) -> None:
    """Neither the networks' numbers nor the random state: a run that is only tried, and what comes after it."""
    student, teacher = normed(6), normed(4)
    teacher.append(nn.Dropout(0.3))
    before = weights(student), weights(teacher)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with pytest.raises(ConfigError, match="9"):
        go(tmp_path, student, teacher, ("9",))
    assert same(weights(student), before[0])
    assert same(weights(teacher), before[1])
    assert torch.equal(torch.get_rng_state(), state)
