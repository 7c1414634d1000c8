"""`compile: auto`: what is fastest is taken, remembered, and changes nothing but rounding."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mstdistill import Teacher, distill, pace
from mstdistill.engine.loop import Trainer
from mstdistill.errors import CheckpointError

from .distributed.program import Maps, images
from .toy import SETTINGS, merged

SHORT = {stage: {"epochs": 1} for stage in ("cotrain", "specialise", "distill")}


@pytest.fixture(autouse=True)
def compilers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A compiler that is there at once; what was run by it."""
    runs: list[str] = []

    def compiled(forward: Any, **_: Any) -> Any:
        def counted(*views: Any) -> Any:
            runs.append("compiled")
            return forward(*views)

        return counted

    monkeypatch.setattr(torch, "compile", compiled)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield runs
    torch.set_num_threads(threads)


def scripted(monkeypatch: pytest.MonkeyPatch, **times: float) -> list[str]:
    """In the place of a clock: every option takes a millisecond, or what is said; the options that took their turn."""
    tried: list[str] = []

    def timed(options: Mapping[str, Callable[[], None]], step: Callable[[], None]) -> dict[str, float]:
        for name, begin in options.items():
            begin()
            step()
            tried.append(name)
        return {name: times.get(name.replace(" ", "_"), 1.0) for name in options}

    monkeypatch.setattr(pace, "timed", timed)
    return tried


def run(out: Path, auto: bool = True, **settings: Any) -> dict[str, torch.Tensor]:
    """A short run of networks with convolutions and batch norms; its student's weights."""
    torch.manual_seed(0)
    student, both, other = Maps(1, 4), Maps(2, 6), Maps(1, 5)
    if auto:
        student.wants_compile = both.wants_compile = "auto"
    teachers = [Teacher("both", both, ("m1", "m2"), ("down",)), Teacher("other", other, ("m2",))]
    distill(student, teachers, images(32, 1), images(16, 2), "m1", out=out, quiet=True,
            settings=merged(SETTINGS, merged(SHORT, settings)))  # fmt: skip
    found = out / "distill" / "result.safetensors"
    return load_file(found) if found.exists() else {}


def test_nothing_of_the_steps_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what the recipe says is as fast as all else, the run is bit for bit the one without `auto`."""
    tried = scripted(monkeypatch)
    plain, timed = run(tmp_path / "plain", auto=False), run(tmp_path / "auto")
    assert tried == ["2", "1", *["contiguous", "channels last", "eager", "compiled"] * 2]
    assert all(torch.equal(x, timed[name]) for name, x in plain.items())
    assert not (tmp_path / "plain" / pace.FILE).exists()


def test_what_is_faster_is_taken_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compilers: list[str]
) -> None:
    scripted(monkeypatch, **{"1": 0.5}, compiled=0.5, channels_last=0.5)
    seen: dict[str, tuple[bool, int]] = {}
    fit = Trainer.fit

    def look(self: Trainer, stage: Any, *rest: Any) -> Any:
        maps = [p for name, p in stage.module.named_parameters() if name.endswith("down.0.weight")]
        compilers.clear()
        found = fit(self, stage, *rest)
        last = any(p.is_contiguous(memory_format=torch.channels_last) for p in maps)
        seen[stage.name] = (last and bool(compilers), torch.get_num_threads())
        return found

    monkeypatch.setattr(Trainer, "fit", look)
    run(tmp_path / "auto", run={"stop_after": "cotrain", "trackers": []})
    facts = json.loads((tmp_path / "auto" / pace.FILE).read_text())
    assert facts["threads"] == 1
    assert set(facts["networks"]) == {"student", "both"}  # the other teacher's recipe doesn't ask
    assert all(one["compile"] and one["channels_last"] for one in facts["networks"].values())
    assert torch.get_num_threads() == 2  # the caller's own

    monkeypatch.setattr(pace, "timed", None)  # nothing is timed again
    resumed = run(tmp_path / "auto")
    assert {name: seen[name] for name in ("cotrain", "distill", "alone")} == dict.fromkeys(
        ("cotrain", "distill", "alone"), (True, 1)
    )
    plain = run(tmp_path / "plain", auto=False)
    for name, x in plain.items():
        torch.testing.assert_close(resumed[name], x, rtol=1e-3, atol=1e-4)


def test_a_compiler_that_fails_leaves_the_network_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(forward: Any, **_: Any) -> Any:
        raise RuntimeError("no C++ compiler\nlong story")

    scripted(monkeypatch)
    monkeypatch.setattr(torch, "compile", broken)
    said: list[str] = []
    runner = pace.Runner("student", Maps(1, 4), {"m1": images(4, 1).inputs["m1"]}, ("m1",))
    found = pace.settled(tmp_path, [runner], False, torch.no_grad, said.append)
    assert found.of["student"] == pace.Pace(compile=False, channels_last=False)
    assert said[0] == "student: torch.compile doesn't work here (no C++ compiler); it runs uncompiled"
    assert said[1] == "compile: auto: student eager; 2 threads"


def test_a_small_gain_is_none() -> None:
    assert pace._quickest({"eager": 1.0, "compiled": 1 / pace.GAIN + 0.01}) == "eager"
    assert pace._quickest({"eager": 1.0, "compiled": 1 / pace.GAIN - 0.01}) == "compiled"


def test_a_damaged_choice_is_a_line(tmp_path: Path) -> None:
    (tmp_path / pace.FILE).write_text('{"threads": 1, "networks": {}}')
    runner = pace.Runner("student", Maps(1, 4), {"m1": images(4, 1).inputs["m1"]}, ("m1",))
    with pytest.raises(CheckpointError, match=r"pace.json is damaged.*delete it") as caught:
        pace.settled(tmp_path, [runner], False, torch.no_grad, print)
    assert "\n" not in str(caught.value)
