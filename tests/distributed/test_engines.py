"""Engines that shard: ZeRO-1, 2, 3 and FSDP2 over gloo give the weights of one process; a run goes on under another
engine and another number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mstdistill.config import OptimSettings
from mstdistill.engine import twin
from mstdistill.engine.fully_sharded import FullyShardedJoined
from mstdistill.engine.joined import Joined
from mstdistill.engine.twin import TwinJoined
from mstdistill.engine.zero import ZeroJoined
from tests import ready
from tests.test_launch_configs import what_trainers_see

from .table import WHOLE, agrees, cell
from .test_ranks import STAGES, launch

ROOT = Path(__file__).parents[2]


def zero(stage: int, processes: int, out: Path, *settings: str, module: str = "tests.toy",
         seconds: float = 600.0) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """The toy run under DeepSpeed, told what Accelerate's launcher tells."""
    out.parent.mkdir(parents=True, exist_ok=True)
    config = out.parent / f"zero{stage}.yaml"
    config.write_text(yaml.safe_dump({
        "compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED", "machine_rank": 0, "num_machines": 1,
        "num_processes": processes, "use_cpu": False, "mixed_precision": "no",
        "deepspeed_config": {"zero_stage": stage, "gradient_accumulation_steps": 1, "zero3_init_flag": False,
                             "offload_optimizer_device": "none", "offload_param_device": "none"},
    }))  # fmt: skip
    env = {key: value for key, value in what_trainers_see(config).items() if key != "ACCELERATE_USE_CPU"}
    env |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return ready.run(module, out, *settings, ranks=processes, env=env, seconds=seconds)


def sharded(processes: int, out: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return ready.run("tests.fully_sharded", out, *settings, ranks=processes, env=env)


def columns_of(names: str, out: Path, processes: int, *engine: str) -> Path:
    """Columns of the table, trained on so many processes."""
    out.mkdir()
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = ready.run("tests.distributed.program", out, WHOLE // processes, 1, names, *engine,
                     ranks=processes if processes > 1 else 0, env=env, seconds=600.0)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def far(one: Path, other: Path) -> dict[str, float]:
    """The largest difference of the weights of each stage."""
    found = {}
    for stage in STAGES:
        a, b = (load_file(out / stage / "result.safetensors") for out in (one, other))
        assert a.keys() == b.keys()
        found[stage] = max(float((a[name] - b[name]).abs().max()) for name in a)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, batches of 16: 75 instances, the last step short."""
    out = tmp_path_factory.mktemp("engines") / "alone"
    done = launch(1, out, "count=75", "batch_size=16", "distill.clip_norm=0.5")
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_equals_one_process(stage: int, alone: Path, tmp_path: Path) -> None:
    """float32, to 2e-5 (sums over ranks round in another order; Adam spreads that)."""
    out = tmp_path / "run"
    done = zero(stage, 2, out, "count=75", "batch_size=8", "distill.clip_norm=0.5")
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(far(alone, out).values()) <= 2e-5


@pytest.mark.distributed
def test_hub_models_are_whole_under_zero3(tmp_path: Path) -> None:
    """Accelerate tells transformers of ZeRO-3, which then builds empty weights."""
    done = zero(3, 1, tmp_path / "model", module="tests.distributed.hub_model")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("engine", ["zero", "fully_sharded"])
def test_a_stage_that_an_engine_copied_gets_its_weights_back(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own weights leave the GPU while a copy is trained; the stages that follow find them there again."""
    kind = {"zero": ZeroJoined, "fully_sharded": FullyShardedJoined}[engine]
    moves: list[str] = []
    monkeypatch.setattr(twin, "_move", lambda _, device: moves.append(device.type))
    module = torch.nn.Linear(2, 2)
    joined = kind.__new__(kind)
    monkeypatch.setattr(Joined, "__init__", lambda self, *_: setattr(self, "accelerator", MagicMock()))
    TwinJoined.__init__(joined, None, module, OptimSettings(), lambda copied: moves.append(str(copied is module)))
    joined.module = MagicMock()
    joined.home = torch.device("cuda")
    joined.close()
    assert moves == ["False", "cpu", "cuda"]


@pytest.mark.gpu
@pytest.mark.distributed
@pytest.mark.parametrize("config", ["deepspeed_zero2", "deepspeed_zero3", "fsdp2"])
def test_engines_equal_a_plain_process_on_a_gpu(config: str, tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    for name in ("single_process", config):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"launch_configs/{name}.yaml",
                   "--num_processes", "1", "-m", "tests.toy", str(tmp_path / name), "count=75"]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    assert max(far(tmp_path / "single_process", tmp_path / config).values()) <= 1e-3


@pytest.mark.distributed
def test_relations_batch_norms_and_live_teachers_are_of_the_whole_batch(tmp_path: Path) -> None:
    """What looks beyond an instance looks at all processes' ones; `python -m tests.distributed.table` has the rest."""
    columns = "live,maps,c2kd,dist,mgdfr,mlld,rkd"
    one, two = (columns_of(columns, tmp_path / str(number), number) for number in (1, 2))
    for row in ("live teachers", "maps and batch norm", *columns.split(",")[2:]):
        value = cell(row, one, two)
        assert agrees(row, value), f"{row}: {value}"


@pytest.mark.distributed
def test_fully_sharded_equals_one_process(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = sharded(2, out, "count=75", "batch_size=8", "distill.clip_norm=0.5")
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(far(alone, out).values()) <= 2e-5


@pytest.mark.distributed
def test_fully_sharded_learns_from_features_inside_of_a_unit(tmp_path: Path) -> None:
    """FitNets' hints don't read the student's logits, whose gradient would gather the weights again."""
    one, two = columns_of("fitnets", tmp_path / "one", 1), columns_of("fitnets", tmp_path / "two", 2, "fsdp2")
    value = cell("fitnets", one, two)
    assert agrees("fitnets", value), value


@pytest.mark.distributed
def test_a_run_goes_on_under_another_engine_and_number_of_processes(alone: Path, tmp_path: Path) -> None:
    """Dies in stage 1 alone, in stage 3 under ZeRO-2, is finished by FSDP2 on two: no step is lost or done twice."""
    out = tmp_path / "run"
    common = ("count=75", "distill.clip_norm=0.5", "run.checkpoint_steps=1")
    assert launch(1, out, *common, "batch_size=16", "die=cotrain:6").returncode != 0
    assert zero(2, 2, out, *common, "batch_size=8", "die=distill:8").returncode != 0
    assert (out / "distill" / "checkpoints").exists()
    assert not (out / "distill" / "result.json").exists()
    done = sharded(2, out, *common, "batch_size=8")
    assert done.returncode == 0, done.stderr[-3000:]
    assert max(far(alone, out).values()) <= 4e-5
    histories = [json.loads((run / "distill" / "result.json").read_text())["history"] for run in (alone, out)]
    assert [h["epoch"] for h in histories[0]] == [h["epoch"] for h in histories[1]]


@pytest.mark.distributed
def test_two_processes_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Dropout draws from each process's own random state, which the checkpoint holds."""
    common = ("count=75", "batch_size=8", "dropout=0.3", "run.checkpoint_steps=1")
    for name, runs in (("undisturbed", [()]), ("killed", [("die=cotrain:5",), ("die=distill:7",), ()])):
        for extra in runs:
            done = launch(2, tmp_path / name, *common, *extra)
            assert (done.returncode == 0) is (extra == ()), done.stderr[-2000:]
    assert max(far(tmp_path / "undisturbed", tmp_path / "killed").values()) == 0.0
