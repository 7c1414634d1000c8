"""Shared fixtures: a tiny task of two modalities, and options."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from mstdistill.kernels.launch import triton_missing
from torch import nn

from .interpreting import speed_up
from .roomy import Roomy
from .rotation import Rotation
from .timing import Timing

if os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":  # told of a CPU, Accelerate drops DeepSpeed
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not torch.cuda.is_available():
    # before any Triton kernel is defined: they run in its interpreter here; compiled builds are tested in a process
    os.environ.setdefault("TRITON_INTERPRET", "1")


# runs a command line; its exit code, output and errors
Command = Callable[..., tuple[int, str, str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=str(Path(__file__).parent / "parity" / "golden"),
                     help="folder of golden numbers with a manifest.json")  # fmt: skip
    parser.addoption("--examples", type=int, default=25, help="made-up inputs of each kind that test_fuzz.py tries")
    parser.addoption("--part-of-commit", action="store_true",
                     help="of the tests that take long, see rotation.py, this commit's part")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Timing(), "timing")
    config.pluginmanager.register(Roomy(), "roomy")
    # a busy machine takes longer now and then: no test is about time
    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")
    settings.register_profile("fuzz", max_examples=config.getoption("--examples"), deadline=None,
                              suppress_health_check=list(HealthCheck))  # fmt: skip
    if config.getoption("--part-of-commit"):
        config.pluginmanager.register(Rotation(config.rootpath), "rotation")
    if os.environ.get("TRITON_INTERPRET") == "1":
        speed_up()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system; where CI demands it, its absence is a failure."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not found:
        message = "needs a browser: apt-get install chromium"
        if os.environ.get("MSTDISTILL_REQUIRE_BROWSER"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"], timeout=60_000)
        yield started
        started.close()


@pytest.fixture(autouse=True, scope="session")
def _pools_fork() -> Iterator[None]:
    """Data are prepared by as many processes as ever, which needn't each import torch."""
    with pytest.MonkeyPatch.context() as patch:
        with suppress(ImportError):  # the GPU check has no package for data
            from mstdistill.data.prepared import reading

            from .ready import Context

            patch.setattr(reading, "get_context", lambda method: Context())
        yield


@pytest.fixture
def triton_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Triton forms: compiled where there is a GPU, else in the interpreter."""
    monkeypatch.setenv("MSTDISTILL_KERNELS", "triton")


_walked = 0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Each stage ends with a full garbage collection: what imports left needn't be walked every time."""
    global _walked
    if len(sys.modules) > _walked + 20:
        gc.collect()
        gc.freeze()
        _walked = len(sys.modules)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # short ones last, to end together
    missing = triton_missing()
    for item in items if missing else ():
        values = getattr(getattr(item, "callspec", None), "params", {}).values()
        of_triton = any(isinstance(value, str) and value == "triton" for value in values)
        if of_triton or "triton_kernels" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=missing))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU here"))


class TensorSplit:
    """Instances held in memory; `order` is the stored one."""

    deterministic = True

    def __init__(self, inputs: dict[str, torch.Tensor], label: torch.Tensor, fingerprint: str = "tensors") -> None:
        self.inputs, self.label, self.fingerprint = inputs, label, fingerprint

    def __len__(self) -> int:
        return len(self.label)

    def fetch(self, index: np.ndarray, modalities: list[str]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rows = torch.from_numpy(np.asarray(index))
        return {name: self.inputs[name][rows] for name in modalities}, self.label[rows]


class MLP(nn.Module):
    """fc1 -> ReLU -> fc2 -> ReLU -> fc3 on its joined modalities."""

    def __init__(self, width: int, h1: int, h2: int, classes: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(width, h1), nn.Linear(h1, h2), nn.Linear(h2, classes)

    def forward(self, *views: torch.Tensor) -> torch.Tensor:
        x = torch.cat(views, dim=1)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


def make_split(count: int, classes: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> TensorSplit:
    """A learnable toy: m1 is noisy, m2 is clear."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (count,), generator=g)
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(99))
    m1 = centres[label] + 1.5 * torch.randn(count, 6, generator=g)
    m2 = (2 * centres[label] + 0.5 * torch.randn(count, 6, generator=g)) @ torch.randn(
        6, 5, generator=torch.Generator().manual_seed(98)
    )
    return TensorSplit({"m1": m1.to(dtype), "m2": m2.to(dtype)}, label, f"toy-{count}-{seed}-{dtype}")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    from mstdistill import cli  # the GPU check has no package for command lines

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mstdistill", *map(str, words)])
        capsys.readouterr()  # what came before is not the command's
        with pytest.raises(SystemExit) as stop:
            cli.main()
        shown = capsys.readouterr()
        code = stop.value.code
        return (0 if code is None else int(code)), shown.out, shown.err

    return run


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, one line on stderr, no traceback."""
    code, _, err = result
    assert code == 2, err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err, err
