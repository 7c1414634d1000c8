"""Plans: exact where they can be counted by hand, consistent where not, and honest about what fits."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mstdistill import config
from mstdistill.engine.loop import Fit
from mstdistill.engine.optimizer import build_optimizer
from mstdistill.engine.progress import Screen
from mstdistill.errors import ConfigError
from mstdistill.planning import show, timing
from mstdistill.planning.engines import DDP, ENGINES, SINGLE, Setting, exchange, memory
from mstdistill.planning.figures import figures_of
from mstdistill.planning.ledger import Ledger, Moment, Phase, Work
from mstdistill.planning.machines import GPUS, find_machine
from mstdistill.planning.plan import Plan, Request, make_plan, weigh
from mstdistill.planning.profile import Sized, StageProfile
from mstdistill.planning.rehearsal import SMALL, PlannedExperiment, _units, rehearse
from mstdistill.planning.roofline import kernel_seconds
from mstdistill.planning.subject import subject_of
from mstdistill.planning.timing import Timer

BATCH = 32
ZERO3 = next(engine for engine in ENGINES if engine.name == "ZeRO-3")


def run_plan(*words: str) -> int:
    """The command line's exit code."""
    from mstdistill.cli import main

    before, sys.argv = sys.argv, ["mstdistill", "plan", *words]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


@lru_cache(maxsize=32)
def profiles(recipe: str, *overrides: str, only: str = "") -> tuple[Any, Any]:
    """A recipe's subject and its stages (or `only` one) as a GPU would run them, without any data.

    Rehearsed at one batch size, which takes half the time: `test_fake_tensors_tell_the_same_as_real_ones` has both.
    """
    measure, train = PlannedExperiment._rehearse, PlannedExperiment.train
    known: dict[Any, Sized] = {}

    def once(self: Any, stage: Any, loader: Any, optimizer: Any, size: int) -> Sized:
        if stage not in known:
            known[stage] = measure(self, stage, loader, optimizer, size)
        return replace(known[stage], batch=size)

    def some(self: Any, stage: Any, *rest: Any) -> Any:
        return train(self, stage, *rest) if only in stage.name else Fit(dict(stage.module.state_dict()), 0, [{}])

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSTDISTILL_HOME", "/nonexistent")
        patch.setattr(PlannedExperiment, "_rehearse", once)
        patch.setattr(PlannedExperiment, "train", some)
        subject = subject_of(config.load(recipe, list(overrides)))
    return subject, rehearse(subject, on_cpu=False)


def plan_of(recipe: str, gpu: str, gpus: int = 1, nodes: int = 1, *overrides: str, bytes_: float = 0) -> Plan:
    subject, found = profiles(recipe, *overrides)
    machine = GPUS[gpu] if not bytes_ else replace(GPUS[gpu], memory=bytes_)
    return weigh(Request(config.load(recipe, list(overrides)), gpu, gpus, nodes), machine, subject, found)


def test_an_mlp_is_counted_to_the_byte() -> None:
    """784 -> 100 -> 10 with ReLU and cross entropy, batch 32, float32, fused Adam."""
    net = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = build_optimizer(config.OptimSettings(), net)
    x, label = torch.rand(BATCH, 784), torch.randint(10, (BATCH,))
    nn.functional.cross_entropy(net(x), label).backward()
    optimizer.step()
    optimizer.zero_grad()
    ledger = Ledger()
    with ledger, ledger.watching(net):
        loss = nn.functional.cross_entropy(net(x), label)
        at_end = ledger.saved
        ledger.begin("backward")
        loss.backward()
        ledger.begin("step")
        optimizer.step()
    parameters = 784 * 100 + 100 + 100 * 10 + 10
    assert sum(p.nbytes for p in net.parameters()) == 4 * parameters
    assert ledger.phases["step"].fullest.gradients == 4 * parameters
    # two moments, and a counter of four bytes for each of four tensors
    state = sum(v.nbytes for entry in optimizer.state.values() for v in entry.values())
    assert state == 8 * parameters + 4 * 4
    # the hidden layer (after ReLU, for ReLU and the second Linear), the log-probabilities, the total weight of the loss
    assert at_end == 4 * (BATCH * 100 + BATCH * 10 + 1)
    works = [work for name in ("forward", "backward") for work in ledger.phases[name].works]
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(net(x), label).backward()
    by_hand = 2 * BATCH * (784 * 100 + 100 * 10) + 2 * BATCH * (784 * 100 + 2 * 100 * 10)
    assert sum(work.flops for work in works) == counter.get_total_flops() == by_hand


@pytest.mark.parametrize("channels_last", [False, True])
def test_fake_tensors_tell_the_same_as_real_ones(channels_last: bool) -> None:
    """The two rehearsals of a stage agree where they can be compared: at the real one's batch size."""
    from mstdistill.planning.rehearsal import _run

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSTDISTILL_HOME", "/nonexistent")
        subject = subject_of(config.load("av-digits", [f"batch_size={SMALL[0]}", f"channels_last={channels_last}"]))
    for fake, real in zip(_run(subject, True, True), _run(subject, True, False), strict=True):
        assert fake.fake
        assert not real.fake
        for a, b in zip(fake.sizes, real.sizes, strict=True):
            assert (a.batch, a.saved, a.flops) == (b.batch, b.saved, b.flops)
            assert a.phases["backward"].fullest == b.phases["backward"].fullest
            for name, phase in a.phases.items():  # as they are laid in memory, too: times hang on that
                calls, wanted = ([str(work.call) for work in one.works if "conv" in str(work.call) or "pool" in
                                  str(work.call)] for one in (phase, b.phases[name]))  # fmt: skip
                assert calls == wanted, (fake.name, name)
                assert calls or name == "step"
        assert (fake.learning_bytes, fake.optimiser, fake.beside) == (real.learning_bytes, real.optimiser, real.beside)


def stage(learning: int = 10_000_000, tensors: int = 10) -> StageProfile:
    """A stage of round numbers."""

    def size(batch: int) -> Sized:
        moment = Moment(4.0 * learning, 1e5 * batch, 1e3 * batch, 1e4 * batch)
        phase = Phase([Work(1e9 * batch, 1e6 * batch)], moment, moment)
        return Sized(batch, {"forward": phase, "backward": phase, "step": Phase([Work(0, 28.0 * learning)])},
                     1e5 * batch, 1e3 * batch)  # fmt: skip

    return StageProfile("stage", (size(8), size(16)), 1000, 1, 8, 1, learning, 4.0 * learning, tensors,
                        (4.0 * learning,), 8.0 * learning, 1e6, 0, 0, 0, ("x",), 100, 0, (), True)  # fmt: skip


def setting(world: int, gpu: str = "h100", precision: str = "no", nodes: int = 1, accumulate: int = 1) -> Setting:
    return Setting(GPUS[gpu], world, nodes, precision, 8, accumulate, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1_000, 3 * 10**9), st.integers(2, 512), st.integers(2, 512), st.sampled_from(["no", "bf16"]))
def test_more_gpus_take_less_memory_under_zero3(learning: int, few: int, more: int, precision: str) -> None:
    few, more = sorted((few, more))
    for engine in ENGINES:
        needs = [memory(engine, stage(learning), setting(n, precision=precision))["total"] for n in (few, more)]
        if engine is ZERO3 and more > few:
            assert needs[1] < needs[0]
        elif engine not in (SINGLE, DDP):
            assert needs[1] <= needs[0]
        else:
            assert needs[1] == needs[0]


def test_bytes_sent_follow_the_published_formulas() -> None:
    gradients, part = 4.0 * 10_000_000, 7 / 8
    sent = {engine.name: exchange(engine, stage(), setting(8, accumulate=3)).bytes for engine in ENGINES}
    assert sent["single process"] == sent["DDP"] == pytest.approx(2 * part * gradients)
    assert sent["ZeRO-1"] == pytest.approx(2 * part * gradients)
    assert sent["ZeRO-2"] == pytest.approx(4 * part * gradients)
    assert sent["ZeRO-3"] == sent["FSDP2"] == pytest.approx(9 * part * gradients)
    assert exchange(DDP, stage(), setting(1)).bytes == 0
    slow, fast = (exchange(DDP, stage(), setting(16, gpu="l40s", nodes=n)).seconds for n in (2, 1))
    assert slow > exchange(DDP, stage(), setting(16, nodes=2)).seconds
    assert slow > fast


def test_fsdp2_holds_two_blocks_whole_and_what_lies_in_none() -> None:
    class Block(nn.Linear):
        pass

    net = nn.Sequential(nn.Linear(10, 4, bias=False), *(Block(4, 4, bias=False) for _ in range(5)))
    assert _units(net) == (160 + 5 * 64,)  # nothing named: one unit
    net._no_split_modules = ["Block"]  # type: ignore[assignment]
    assert _units(net) == (160, *[64] * 5)
    whole, cut = stage(100), replace(stage(100), units=(160.0, *[48.0] * 5))
    assert cut.gathered == 160 + 2 * 48
    fsdp2 = next(engine for engine in ENGINES if engine.name == "FSDP2")
    needs = [memory(fsdp2, one, setting(4)) for one in (whole, cut)]
    assert needs[0]["weights"] - needs[1]["weights"] == 400 - 256
    assert needs[0]["gradients"] - needs[1]["gradients"] == 400 - 256
    assert exchange(fsdp2, cut, setting(4)).calls == 18


def test_other_batch_sizes_lie_on_the_line() -> None:
    one = stage()
    assert one.at(8) is one.sizes[0]
    assert one.at(24).saved == 24e5
    assert one.at(24).flops == 2 * 24e9
    assert one.at(4).phases["forward"].fullest.rest == 4e4


def test_a_kernel_takes_the_longer_of_its_two_sides() -> None:
    gpu = GPUS["h100"]
    arithmetic, traffic = Work(1e12, 1.0), Work(1.0, 1e9)
    rate = gpu.tf32 * gpu.flops_efficiency
    assert kernel_seconds([arithmetic], gpu, "no", True) == pytest.approx(1e12 / rate + gpu.per_operator)
    assert kernel_seconds([arithmetic], gpu, "no", False) > kernel_seconds([arithmetic], gpu, "no", True)
    assert kernel_seconds([traffic], gpu, "no", True) == pytest.approx(1e9 / gpu.reads + gpu.per_operator)
    assert kernel_seconds([replace(arithmetic, half=True)], gpu, "bf16", True) < kernel_seconds(
        [arithmetic], gpu, "bf16", True
    )


def advice(gpus: int, bytes_: float = GPUS["h100"].memory) -> Plan:
    """A plan for a stage whose weights weigh most."""
    subject = profiles("av-digits")[0]
    machine = replace(GPUS["h100"], memory=bytes_)
    return weigh(Request(config.load("av-digits"), "h100", gpus), machine, subject, [stage(1_000_000_000)])


def test_advice_goes_from_plain_to_sharded_as_the_gpu_shrinks() -> None:
    roomy = advice(8)
    assert roomy.chosen is not None
    assert roomy.chosen.engine is DDP
    ddp = next(one for one in roomy.candidates if one.engine is DDP)
    others = [one.largest for one in roomy.candidates if not one.engine.plain and not one.engine.offload]
    assert min(others) < ddp.largest
    # room for the smallest of those that share, and none for DDP
    tight = advice(8, (min(others) + 1e6) / 0.9)
    assert tight.chosen is not None
    assert tight.chosen.cut == 1
    assert not tight.chosen.engine.plain
    assert "more than 90 %" in tight.reasons["DDP"]
    alone = advice(1)
    assert alone.chosen is not None
    assert alone.chosen.engine is SINGLE


def test_a_batch_that_fits_nowhere_is_cut_and_one_too_large_is_refused() -> None:
    # networks, gradients and Adam take 1.2 MB, an instance 112 kB, a process on a GPU 1 GB
    recipe, (subject, _) = config.load("av-digits", ["distill.batch_size=40"]), profiles("av-digits")
    request, heavy = Request(recipe, "a10", 4), [stage(10_000)]
    plan = weigh(request, replace(GPUS["a10"], memory=(1e9 + 1.9e6) / 0.9), subject, heavy)
    assert plan.chosen is not None
    assert plan.chosen.engine is DDP
    assert plan.chosen.cut == 2
    words = figures_of(plan, "av-digits")["commands"][0].split()
    assert {"batch_size=32", "accumulate=2", "distill.batch_size=20"} <= set(words)
    nothing = weigh(request, replace(GPUS["a10"], memory=1e9), subject, heavy)
    assert nothing.chosen is None
    figures = figures_of(nothing, "av-digits")
    assert figures["commands"] == []
    assert any("nothing fits" in str(part) for part in show.shown(figures))


def test_commands_name_files_that_are_there() -> None:
    root = Path(__file__).parent.parent
    for gpus, nodes in ((1, 1), (8, 1), (8, 4)):
        plan = plan_of("av-mnist", "h100", gpus, nodes)
        lines = figures_of(plan, "av-mnist", ["seed=3"], ["released"])["commands"]
        assert len(lines) == (2 if nodes > 1 else 1)
        for line in lines:
            assert "train av-mnist seed=3 --preset released batch_size=64" in line
            for name in re.findall(r"(?:launch_configs|scripts)/\S+", line):
                assert (root / name).exists(), name
        if nodes > 1:
            assert "--num_processes 32" in lines[0]
            assert "--machine_rank RANK --main_process_ip FIRST_NODE" in lines[0]
            assert lines[1].startswith("CONFIG=launch_configs/multi_node.yaml sbatch --nodes=4 --gpus-per-node=8")
    for engine in ENGINES:
        assert (root / engine.config(1)).exists()
        assert (root / engine.config(2)).exists()


@pytest.mark.parametrize("recipe", config.recipe_names())
def test_every_recipe_plans_without_data_on_every_gpu(recipe: str) -> None:
    for gpu in GPUS:
        for gpus, nodes in ((1, 1), (8, 2)):
            plan = plan_of(recipe, gpu, gpus, nodes)
            assert "published size" in plan.subject.source
            assert plan.chosen is not None, (recipe, gpu)
            assert {"cotrain", "specialise", "distill", "alone"} == set(plan.chosen.stages)
            for figures in plan.chosen.stages.values():
                assert all(value >= 0 for value in figures["memory"].values())
                assert figures["seconds"] > 0


@pytest.mark.parametrize("method", ["kd", "fitnets", "crd", "mgdfr", "c2kd", "average", "alone"])
def test_methods_of_the_comparison_plan_too(method: str) -> None:
    plan = plan_of("av-digits", "h100", 1, 1, f"method={method}")
    assert plan.chosen is not None
    assert "distill" in plan.chosen.stages


@pytest.mark.parametrize("rule", ["topk-mean", "soft"])
def test_live_teachers_are_counted_whichever_are_chosen(rule: str) -> None:
    words = ("distill.cache.mode=never", "routing.signal=none", f"routing.rule={rule}")
    (_, live), (_, cached) = profiles("av-digits", *words, only="distill"), profiles("av-digits")
    live, cached = (next(one for one in found if one.name == "distill") for found in (live, cached))
    assert live.fake
    assert not live.tables
    assert live.loaded == ("audio", "image")
    # the student learns the same; the teachers' forward passes and their inputs come on top
    assert live.learning_bytes == cached.learning_bytes
    assert live.sizes[0].flops > 2 * cached.sizes[0].flops
    assert live.sizes[0].phases["forward"].fullest.besides > cached.sizes[0].phases["forward"].fullest.besides


def test_hugging_face_models_and_own_data_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models from local folders: their configs are read, their weights are not."""
    from . import tiny_hub
    from .test_huggingface import documented

    monkeypatch.setenv("MSTDISTILL_HOME", str(tmp_path / "home"))
    for name in ("vit", "bert", "clip"):
        folder = Path(getattr(tiny_hub, name)(tmp_path / name))
        for weights in folder.glob("*.safetensors"):
            weights.unlink()
    tiny_hub.data_set(tmp_path / "captioned", 60)
    recipe = config.load(str(documented("image-text", tmp_path, tmp_path / "captioned", tmp_path / "recipes")))
    subject = subject_of(recipe)
    assert subject.counts["train"] == 36
    found = rehearse(subject, on_cpu=False)
    assert [profile.name for profile in found] == ["cotrain", "specialise", "distill", "alone"]
    plan = weigh(Request(recipe, "l4", 2), GPUS["l4"], subject, found)
    assert plan.chosen is not None
    assert plan.chosen.engine is DDP


def test_unknown_gpu_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="unknown GPU 'h10'; did you mean h100"):
        find_machine("h10")
    assert run_plan("av-digits", "--gpu", "h10") == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "did you mean h100" in error


def numbers(value: Any) -> list[float]:
    """Every number in a JSON value, words' numbers included."""
    if isinstance(value, dict):
        return [n for key, inner in value.items() for n in [*numbers(key), *numbers(inner)]]
    if isinstance(value, list):
        return [n for inner in value for n in numbers(inner)]
    if isinstance(value, str):
        return [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*\.?\d*", value)]
    return [] if value is None or isinstance(value, bool) else [float(value)]


def test_json_holds_each_number_that_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("mstdistill.planning.plan.rehearse", lambda *_: profiles("av-digits")[1])
    path = tmp_path / "plan.json"
    assert run_plan("av-digits", "--gpus", "4", "--nodes", "2", "--json", str(path)) == 0
    printed = capfd.readouterr().out
    found = numbers(json.loads(path.read_text()))
    texts = {text(n) for n in found for text in (show.bytes_text, show.seconds_text, show.flops_text)}
    texts |= {f"{n:.0f}" for n in found} | {f"{n:,.0f}" for n in found} | {f"{100 * n:.0f} %" for n in found}
    texts |= {f"{100 * (1 - n):.0f} %" for n in found if n <= 1}
    # numbers with their units; words like h100 and paths aren't numbers
    body = printed.split("accelerate launch")[0]
    shown = re.findall(r"(?<![\w/.-])\d[\d,.]*(?:e[+-]\d+)?(?: (?:[kMGT]?B|[un]?m?s|min|h|[PTGM]?FLOP|%))?(?![\w/-])",
                       body)  # fmt: skip
    assert len(shown) > 100
    missing = [one for one in shown if one.rstrip(".,") not in texts]
    assert not missing, missing


@pytest.mark.parametrize(
    ("recipe", "gpus", "nodes", "memory", "override"),
    [
        ("nyu-depth-v2", 8, 2, 80e9, ()),
        ("av-digits", 1, 1, 1e6, ()),  # nothing fits
        ("av-digits", 1, 1, 3.02e9, ()),
        ("av-digits", 8, 1, 80e9, ("method=c2kd",)),
    ],
)
def test_nothing_is_cut_on_a_narrow_terminal(recipe: str, gpus: int, nodes: int, memory: float,
                                             override: tuple[str, ...], capfd: pytest.CaptureFixture[str],
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "80")
    plan = plan_of(recipe, "h100", gpus, nodes, *override, bytes_=memory)
    screen, tables = Screen(), 0
    for part in show.shown(figures_of(plan, recipe, override)):
        screen.say(part)
        printed = capfd.readouterr().out
        if not isinstance(part, Table):
            continue
        tables += 1
        assert max(map(len, printed.splitlines())) <= 80
        said = " ".join(re.sub("[^ -~]", " ", printed).split())
        assert not part.title or str(part.title) in said
        for column in part.columns:
            assert str(column.header) in said
            for cell in map(str, column.cells):  # reasons go over several lines
                assert cell in said or (cell in plan.reasons.values() and set(cell.split()) <= set(said.split()))
    assert tables >= 3


def test_tables_too_wide_for_one_become_several() -> None:
    columns = {f"a stage of a long name {n}": {"one": f"{n}.25 GB", "two": show.NOTHING} for n in range(7)}
    parts = list(show._tables("title", columns))
    assert [str(column.header) for part in parts for column in part.columns if column.header] == list(columns)
    assert len(parts) > 1
    assert all(list(part.columns[0].cells) == ["one"] for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["av-digits, image, batch 64", "av-digits, audio, batch 1024"])
def test_measured_peak_is_within_a_seventh(case: str) -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
    import check_plan

    rows = check_plan.check(case, timed=False)
    assert {row["stage"] for row in rows} == {"cotrain", "specialise", "distill", "alone"}
    for row in rows:
        assert abs(row["error"]) <= check_plan.TARGET, row


def _seen(run: Any) -> list[Work]:
    with Ledger() as ledger:
        run()
    return ledger.phases["forward"].works


def test_operators_of_a_step_can_be_called_again_by_their_shapes() -> None:
    """Convolutions, gathers, losses and a fused optimiser's lists among them; strides are kept."""
    layer, images = nn.Conv2d(3, 4, 3), torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)

    def step() -> None:
        found = layer(images).flatten(1)
        picked = found.gather(1, torch.zeros(2, 3, dtype=torch.int64))
        loss = nn.functional.cross_entropy(picked, torch.tensor([0, 2])) + found.log_softmax(dim=1).mean()
        loss.backward()
        optimizer.step()

    works = _seen(step)
    assert all(work.call is not None for work in works)
    calls = [work.call for work in works if work.call is not None]
    convolution = next(call for call in calls if call.func is torch.ops.aten.convolution.default)
    assert convolution.arguments[1].tensor().stride() == images.stride()
    timer = Timer(budget=100.0)
    assert all(timer.seconds(work.call, 1e-6) > 0 for work in works)
    assert None not in timer._known.values()


def test_an_operator_is_timed_once_and_beyond_the_budget_counts_as_the_others_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[str] = []

    def fake(work: Any) -> float:
        work()
        called.append("timed")
        return 3.0

    monkeypatch.setattr(timing, "_median", fake)
    one, other = (_seen(lambda n=n: torch.rand(n).exp())[-1] for n in (4, 5))
    timer = Timer(budget=10.0, share=0.5)
    assert timer.seconds(one.call, 2.0) == 6.0  # of half a machine
    assert timer.seconds(one.call, 2.0) == 6.0
    assert called == ["timed"]
    assert timer.seconds(other.call, 20.0) == 60.0  # too long to time: three times what is expected, as the one before
    assert timer.seconds(None, 1.0) == 3.0
    assert called == ["timed"]


def test_an_operator_that_refuses_made_up_numbers_counts_as_expected() -> None:
    wide = timing.Spec(torch.float32, (3, 2), (2, 1))
    call = timing.Call(torch.ops.aten.linalg_cholesky.default, ("list", wide), ("list",))
    assert Timer().seconds(call, 0.25) == 0.25


def test_folds_are_planned_as_the_co_training_is() -> None:
    _, found = profiles("av-digits", "routing.reads=teachers", "routing.folds=2")
    named = {profile.name: profile for profile in found}
    for name in ("fold-1", "fold-2"):
        assert named[name].epochs == named["cotrain"].epochs
        assert named[name].learning == named["cotrain"].learning
    assert [table.shape[1] for table in named["distill"].tables] == [4, 2]  # of the specialised teachers, and unmasked


def test_few_labels_are_planned_with_their_rounds() -> None:
    plan = make_plan(
        Request(config.load("av-digits", ["data.labelled=0.1", "rounds.epochs=4"], ["labels"]), "h100", 1, 1)
    )
    named = {profile.name: profile.epochs for profile in plan.profiles}
    assert [named[f"round-{number}"] for number in (1, 2, 3)] == [4, 4, 4]
    assert "specialise" not in named  # no masks
