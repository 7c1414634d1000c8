"""Launch configs, cluster scripts and their page: Accelerate and DeepSpeed read them as meant; those for CPUs start."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from accelerate.commands import launch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils import launch as launching
from torch import nn

from mstdistill.config import load, recipe_names
from mstdistill.engine.fully_sharded import cut_at_blocks

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "launch_configs").glob("*.yaml"))
JSONS = sorted((ROOT / "launch_configs").rglob("*.json"))
SCRIPTS = sorted([*(ROOT / "launch_configs").glob("*.sh"), *(ROOT / "scripts").glob("*.sh")])
PAGE = (ROOT / "docs" / "clusters.md").read_text()
ZERO = {"deepspeed_zero1": 1, "deepspeed_zero2": 2, "deepspeed_zero3": 3, "deepspeed_zero3_offload": 3}
SMALL = ["cotrain.epochs=1", "specialise.epochs=1", "alone.enabled=false", "run.trackers=[]", "run.page=false",
         "data.limit=120"]  # fmt: skip

LONG = [*SMALL, "distill.epochs=80", "run.checkpoint_seconds=0"]


def name_of(path: Path) -> str:
    return path.name


def commands_of(text: str) -> list[list[str]]:
    """Commands of a comment's indented lines or a page's bash blocks, without what only explains them."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL) or ["\n".join(re.findall(r"^#  +(\S.*)$", text, re.M))]
    lines = [re.sub(r"\s{3,}.*|\s+#.*", "", line) for block in blocks for line in block.splitlines()]
    return [shlex.split(part) for line in lines for part in line.split(" && ") if part.strip()]


def launch_arguments(words: list[str]) -> Any:
    """What `accelerate launch` makes of its words, a mistake in them being its own error."""
    args, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    return args


def what_trainers_see(config: Path, *words: str) -> Mapping[str, str]:
    """The environment that Accelerate's launcher gives to the processes that it starts."""
    args = launch_arguments(["--config_file", str(config), "--main_process_port", "0", *words, "-m", "mstdistill"])
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(load_config_from_file(str(config)).deepspeed_config)
        found: Mapping[str, str] = launching.prepare_deepspeed_cmd_env(args)[1]
    elif args.use_fsdp or args.multi_gpu:
        found = launching.prepare_multi_gpu_env(args)
    else:
        found = launching.prepare_simple_launcher_cmd_env(args)[1]
    return found


def check_train(words: list[str]) -> None:
    """Raises where `train RECIPE key=value ... --out FOLDER` isn't a command."""
    assert words[0] == "train", words
    assert words[1] in recipe_names()
    load(words[1], [word for word in words[2:] if "=" in word])
    assert set(words[2:][::-1][1:2]) <= {"--out"}, words


# --------------------------------------------------------------------------------------------- what is written in them


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_every_key_counts(path: Path) -> None:
    """Accelerate refuses unknown keys at the top only; in sections they do nothing, as some known ones do anywhere."""
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    wanted = {"deepspeed": "DEEPSPEED", "fsdp2": "FSDP", "multi": "MULTI_GPU", "single": "NO"}
    assert config.distributed_type == DistributedType(wanted[re.split(r"[_.]", path.name)[0]])
    known = set(vars(launch.launch_command_parser().parse_args(["-m", "mstdistill"])))
    args = vars(launch_arguments(["--config_file", str(path), "-m", "mstdistill"]))
    for key, value in yaml.safe_load(path.read_text()).items():
        for name, wish in (value if isinstance(value, dict) else {key: value}).items():
            assert name in known | {"compute_environment", "distributed_type"}, name
            assert args.get(name, wish) == wish, f"{name}: {args[name]}"


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_precision_lies_in_the_recipe(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert content.get("mixed_precision", "no") == "no"
    assert "fp8_config" not in content
    # beside a JSON, Accelerate stops at a mixed_precision of the YAML, whatever it says
    assert ("mixed_precision" in content) != ("deepspeed_config_file" in content.get("deepspeed_config", {}))


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_the_head_says_when_and_how(path: Path) -> None:
    head = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert "Pick it" in head
    commands = [words for words in commands_of(head) if words[0] == "accelerate"]
    assert commands
    for words in commands:
        assert words[words.index("--config_file") + 1] == f"launch_configs/{path.name}"
        args = launch_arguments(
            [str(ROOT / word) if word.startswith("launch_configs/") else word for word in words[2:]]
        )
        assert args.training_script == "mstdistill"
        check_train(args.training_script_args)
    assert all((ROOT / name).exists() for name in re.findall(r"(?:scripts|docs|launch_configs)/[\w./]+\w", head))


@pytest.mark.parametrize("name", sorted(ZERO))
def test_zero_as_trainers_see_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage is the promised one, and nothing that the recipe decides is decided."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.config import DeepSpeedConfig

    monkeypatch.chdir(ROOT)
    seen = what_trainers_see(ROOT / "launch_configs" / f"{name}.yaml")
    monkeypatch.setattr(os, "environ", {**os.environ, **seen})
    plugin = DeepSpeedPlugin()
    content = plugin.deepspeed_config
    assert content["zero_optimization"]["stage"] == ZERO[name]
    assert plugin.zero3_init_flag is False
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
                "gradient_clipping"):  # fmt: skip
        assert content.pop(key) == "auto", key
    assert not {"optimizer", "scheduler", "fp16", "bf16", "amp"} & set(content)
    offloaded = {part: content["zero_optimization"].get(part, {}).get("device") for part in
                 ("offload_optimizer", "offload_param")}  # fmt: skip
    assert set(offloaded.values()) == ({"cpu"} if name.endswith("offload") else {"none"})
    # DeepSpeed's own reading: its sections refuse unknown keys
    content.update(train_micro_batch_size_per_gpu=4, gradient_accumulation_steps=1, gradient_clipping=0.5)
    read = DeepSpeedConfig(content)
    assert read.zero_config.stage == ZERO[name]
    assert read.zero_force_ds_cpu_optimizer is not name.endswith("offload")


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in ZERO], ids=name_of)
def test_zero_over_nodes_needs_no_ssh(path: Path) -> None:
    """Accelerate's default for several nodes is pdsh with a host file; every node has a launcher here."""
    args = launch_arguments(["--config_file", str(path), "--main_process_port", "0", "--num_machines", "2",
                             "--num_processes", "16", "--machine_rank", "1", "--main_process_ip", "node0",
                             "-m", "mstdistill"])  # fmt: skip
    args.deepspeed_fields_from_accelerate_config = ""
    command, _ = launching.prepare_deepspeed_cmd_env(args)
    assert command is None, command
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)


@pytest.mark.parametrize("path", JSONS, ids=name_of)
def test_jsons_are_used_and_decide_nothing_of_the_recipe(path: Path) -> None:
    content = json.loads(path.read_text())
    assert any(str(path.relative_to(ROOT)) in config.read_text() for config in CONFIGS)
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
                "gradient_clipping"):  # fmt: skip
        assert content[key] == "auto"


class Blocks(nn.Module):
    """What a policy may stumble over: a container that can't be called, weights that another layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(256, 4, 1024) for _ in range(2))
        self.head = nn.Linear(256, 10)


def test_fsdp2_as_trainers_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    seen = what_trainers_see(ROOT / "launch_configs" / "fsdp2.yaml")
    assert seen["ACCELERATE_USE_FSDP"] == "true"
    monkeypatch.setattr(os, "environ", {**os.environ, **seen})
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert "FULL" in str(plugin.state_dict_type)
    # Accelerate's launcher says true unless told: all processes but the first would build empty teachers
    assert plugin.cpu_ram_efficient_loading is False
    plugin = FullyShardedDataParallelPlugin()  # one for all stages of a run
    for names, cut in (
        ([], set()),
        (["TransformerEncoderLayer", "Elsewhere"], {"0.layers.0", "0.layers.1"}),
        ([], set()),
    ):
        with torch.device("meta"):
            network = nn.ModuleList([Blocks(), nn.Linear(2, 2)])
        network[0]._no_split_modules = names  # type: ignore[assignment]
        cut_at_blocks(plugin, network)
        plugin.set_auto_wrap_policy(network)
        policy = fsdp2_prepare_auto_wrap_policy(plugin, network)
        assert {name for name, module in network.named_modules() if policy is not None and policy(module)} == cut


def test_ddp_over_nodes_has_ranks_as_given() -> None:
    args = launch_arguments(["--config_file", str(ROOT / "launch_configs" / "multi_node.yaml"), "--machine_rank", "1",
                             "--main_process_ip", "node0", "-m", "mstdistill"])  # fmt: skip
    launching.prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert (args.rdzv_endpoint, args.rdzv_backend) == ("node0:29500", "static")


# ---------------------------------------------------------------------------------------------------- scripts and page


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_shell_scripts_are_sound(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    if path.name != "setup.sh":  # which is sourced
        assert "set -euo pipefail" in path.read_text()
        assert path.stat().st_mode & stat.S_IXUSR, "not executable"


def test_the_page_names_every_config_and_no_other() -> None:
    table = PAGE.split("## Which config")[1].split("\n## ")[0]
    named = re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in (ROOT / "launch_configs").iterdir() if path.is_file())
    for name in re.findall(r"(?:scripts|launch_configs|docs)/[\w./]+\w", PAGE):
        assert (ROOT / name).exists(), name


def test_the_commands_of_the_page_are_commands() -> None:
    trains = 0
    for words in commands_of(PAGE):
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words[0] == "accelerate":
            args = launch_arguments([str(ROOT / w) if w.startswith("launch_configs/") else w for w in words[2:]])
            words = args.training_script_args
        elif words[0] == "sbatch" or words[0].startswith("scripts/"):
            words = words[next(i for i, word in enumerate(words) if word.startswith("scripts/")) + 1 :]
        if words[:1] == ["train"]:
            check_train(words)
            trains += 1
    assert trains >= 5


def test_the_pods_find_each_other_and_may_save() -> None:
    service, job = yaml.safe_load_all((ROOT / "scripts" / "kubernetes.yaml").read_text())
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (service["kind"], service["spec"]["clusterIP"]) == ("Service", "None")
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert variables["ENDPOINT"].split(":")[0] == f"{name}-0.{pod['subdomain']}"
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    assert spec["completions"] == spec["parallelism"] == int(variables["NODES"].split(":")[-1])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(variables["GPUS"])
    assert pod["restartPolicy"] == "OnFailure"
    script = ROOT / container["command"][0]
    check_train(container["args"])
    saving = re.search(r"SHUTDOWN_TIMEOUT:-(\d+)", script.read_text())
    assert saving is not None
    assert pod["terminationGracePeriodSeconds"] > int(saving[1])
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    for folder in (container["args"][-1], variables["MSTDISTILL_HOME"], variables["HF_HOME"]):
        assert "persistentVolumeClaim" in volumes[mounts["/" + folder.split("/")[1]]], folder


# ------------------------------------------------------------------------------------------------------- they do start


@contextmanager
def started(words: list[str], **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A command and all that it starts, which end with the block."""
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **variables}
    job = subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield job
    finally:
        if job.poll() is None:
            for process in (*psutil.Process(job.pid).children(recursive=True), job):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            job.wait()


def finish(words: list[str]) -> None:
    with started(words) as job:
        said, _ = job.communicate(timeout=400)
    assert job.returncode == 0, said[-3000:]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def until(true: Callable[[], Any], process: subprocess.Popen[Any], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, f"ended with {process.returncode} before it was time"
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.05)


def worlds(out: Path) -> set[int]:
    """How many processes wrote the checkpoints that lie in a run."""
    return {json.loads(path.read_text())["world"] for path in out.rglob("facts.json")}


@pytest.mark.slow
def test_one_process_starts(tmp_path: Path) -> None:
    finish(["accelerate", "launch", "--config_file", "launch_configs/single_process.yaml", "-m", "mstdistill", "train",
            "av-digits", *SMALL, "distill.epochs=1", "--out", str(tmp_path / "run")])  # fmt: skip
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_cpu_processes_train_together_and_stop_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with started(["launch_configs/multi_cpu.sh", "2", "train", "av-digits", *LONG, "--out", str(out)]) as job:
        until(lambda: list(out.glob("distill/**/[!.]*/facts.json")), job)
        job.terminate()
        said, _ = job.communicate(timeout=300)
    assert "state saved" in said, said
    assert worlds(out) == {2}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_starts_on_cpus(stage: int, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    finish(["launch_configs/deepspeed_cpu.sh", "2", str(stage), "train", "av-digits", *SMALL, "distill.epochs=1",
            "--out", str(tmp_path / "run")])  # fmt: skip
    assert (tmp_path / "run" / "summary.json").exists()


# what SLURM does: a job's command once a node, signals to every process of it; names of nodes, queueing again
SRUN = """#!{python}
import contextlib, os, signal, subprocess, sys
import psutil

words = sys.argv[1:]
count = next(int(word[8:]) for word in words if word.startswith("--nodes="))
while words[0].startswith("--"):
    words.pop(0)
nodes = [subprocess.Popen(words, env=dict(os.environ, SLURM_NODEID=str(number))) for number in range(count)]

def forward(number, frame):
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)

signal.signal(signal.SIGUSR1, forward)
sys.exit(max(abs(node.wait()) for node in nodes))
"""
SCONTROL = """#!/usr/bin/env bash
case "$1" in
    show) echo localhost; echo localhost ;;
    requeue) echo "$2" >> "$(dirname "$0")/requeued" ;;
esac
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_a_slurm_job_saves_and_queues_again(tmp_path: Path) -> None:
    for name, text in (("srun", SRUN.replace("{python}", sys.executable)), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    out = tmp_path / "run"
    slurm = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "PORT": free_port(), "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[0-1]",
        "SLURM_GPUS_ON_NODE": "1", "SLURM_CPUS_PER_TASK": "1",
    }  # fmt: skip
    with started(["bash", "scripts/train_slurm.sh", "train", "av-digits", *LONG, "--out", str(out)], **slurm) as job:
        until(lambda: list(out.glob("distill/**/[!.]*/facts.json")), job)
        job.send_signal(signal.SIGUSR1)
        said, _ = job.communicate(timeout=300)
    assert job.returncode == 0, said
    assert "state saved" in said, said
    assert worlds(out) == {2}
    assert (tmp_path / "requeued").read_text() == "77\n", said


@pytest.mark.slow
@pytest.mark.distributed
def test_an_elastic_run_outlives_a_lost_process(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["scripts/train_torchrun.sh", "train", "av-digits", *LONG, "distill.epochs=40", "--out", str(out)]
    with started(words, GPUS="2") as job:
        until(lambda: list(out.glob("distill/**/[!.]*/facts.json")), job)
        assert worlds(out) == {2}
        psutil.Process(job.pid).children()[-1].kill()
        said, _ = job.communicate(timeout=400)
    assert job.returncode == 0, said[-3000:]
    assert "distill: continues at" in said, said[-3000:]
    assert (out / "summary.json").exists()
