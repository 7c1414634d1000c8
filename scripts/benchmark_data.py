"""How fast data are prepared and read, and in how much memory, per task.

python scripts/benchmark_data.py --out docs/results/data-cpu.json      (about ten minutes on two cores)

Raw files are generated in the publishers' formats and sizes (720p video, 48 kHz sound, 480x640 scenes), encoders have
the published sizes and random weights: speed doesn't depend on what they learned. The loader is measured against the
cheapest step that reads its batch: the student alone, forward, backward and Adam.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mstdistill.backbones.catalogue import build as build_network
from mstdistill.config import load
from mstdistill.data.decode.faces import Faces
from mstdistill.data.feeding.loader import Loader
from mstdistill.data.prepared.build import build
from mstdistill.data.prepared.plan import Column, Item, Plan
from mstdistill.data.prepared.store import PreparedSplit, read_card
from mstdistill.data.sources import ravdess
from mstdistill.data.sources.registry import find_task
from mstdistill.engine.progress import Screen
from mstdistill.files import write_text
from tests import publishers

QUIET = Screen(quiet=True)
# what the publishers' sets hold, for the estimates: instances, bytes as stored
SIZES = {"av-mnist": 70_000, "ravdess": 1_440, "vggsound-50k": 50_000, "crisismmd-v2": 16_058, "nyu-depth-v2": 1_449}


def prepare(task: str, scratch: Path, workers: int, **options: Any) -> dict[str, Any]:
    """Throughput and memory of the command: the largest memory of its own of the main process and of a worker."""
    folder = scratch / f"{task}-prepared"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in {**options, "workers": workers}.items()]
    command = [sys.executable, "-m", "mstdistill", "prepare", task, "--out", str(folder), *words]
    main, worker = 0, 0
    with psutil.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with suppress(psutil.Error):
                main = max(main, process.memory_full_info().uss)
            for child in process.children(recursive=True):
                with suppress(psutil.Error):
                    worker = max(worker, child.memory_full_info().uss)
            time.sleep(0.05)
    log = json.loads((scratch / f"{task}-prepared.prepare.json").read_text())
    rows = read_card(folder)["splits"]["all"]["rows"]
    stored = sum(path.stat().st_size for path in folder.rglob("*.arrow"))
    return {
        "instances": rows, "seconds": log["seconds"], "per_second": log["instances_per_second"],
        "main_mb": round(main / 1e6), "worker_mb": round(worker / 1e6), "bytes_per_instance": stored // rows,
        "gb_in_all": round(stored / rows * SIZES[task] / 1e9, 2),
        "hours_in_all": round(SIZES[task] / log["instances_per_second"] / 3600, 2),
    }  # fmt: skip


def encoders(scratch: Path) -> dict[str, str]:
    """Full-size networks with random weights: ResNet-50 and a BERT of BERTweet's size."""
    from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    publishers.text_encoder(scratch / "bert")
    words = len((scratch / "bert" / "vocab.txt").read_text().split("\n"))
    BertModel(BertConfig(vocab_size=words, max_position_embeddings=130)).save_pretrained(scratch / "bert")
    ResNetModel(ResNetConfig()).save_pretrained(scratch / "resnet")
    return {"text_encoder": str(scratch / "bert"), "image_encoder": str(scratch / "resnet")}


def per_core(scratch: Path) -> dict[str, float]:
    """RAVDESS's two readers on one core."""
    raw = publishers.ravdess(scratch / "one", clips=8, size=(720, 1280))
    sounds, videos = sorted(raw.rglob("03-01-*.wav")), sorted(raw.rglob("*.mp4"))
    ravdess.hear(sounds[0])
    started = time.monotonic()
    for _ in range(5):
        for path in sounds:
            ravdess.hear(path)
    heard = (time.monotonic() - started) / (5 * len(sounds))
    figures = {"audio_times_real_time": 3.6 / heard}
    for how in ("centre", "opencv"):
        reader = ravdess.ReadClip(raw, Faces(how))
        started = time.monotonic()
        for path in videos:
            reader.see(path)
        figures[f"video_clips_per_second_{how}"] = len(videos) / (time.monotonic() - started)
    return {name: round(value, 2) for name, value in figures.items()}


def loader_against_step(task: str, scratch: Path, target: str, rows: int) -> dict[str, Any]:
    """Milliseconds of a batch from the prepared folder and of the student's step on it, at the recipe's batch size."""
    found, recipe = find_task(task), load(task, [f"target={target}"])
    full: dict[str, tuple[int, ...]] = {"rgb": (3, 480, 640), "depth": (1, 480, 640)}
    shape = full.get(target, tuple(n or 0 for n in found.modalities[target]))
    as_bytes = task in ("ravdess", "nyu-depth-v2") and target in ("video", "rgb")
    dtype = "uint8" if as_bytes else "float16" if task in ("vggsound-50k", "av-mnist") else "float32"
    scale = None if task in ("crisismmd-v2", "av-mnist") or target == "audio" else "global"
    columns = {target: Column(shape, dtype, scale)}
    if found.ignore_index is not None:
        columns["label"] = Column(shape[1:], "uint8")
    plan = Plan(task, 1, columns, [Item(str(i), i, None if "label" in columns else i % found.num_classes)
                                   for i in range(rows)], Synthetic(columns, found.num_classes), {})  # fmt: skip
    folder = build(scratch / f"{task}-{target}", plan, QUIET, 1)
    split = PreparedSplit(folder, "all", read_card(folder))
    loader = Loader(split, [target], recipe.batch_size, shuffle=True, num_classes=found.num_classes,
                    ignore_index=found.ignore_index)  # fmt: skip
    cpu = torch.device("cpu")
    reading = best_of(lambda: [batch.to(cpu) for batch in loader.epoch()]) / -(-rows // recipe.batch_size)
    backbone = recipe.pairing.student.backbone
    assert backbone is not None, "a published task's"
    student = build_network(backbone, found.num_classes)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4)
    batch = loader.first().to(cpu)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(student(batch.inputs[target]), batch.label).backward()
        optimizer.step()

    stepping = best_of(step)
    shutil.rmtree(folder)
    return {"target": target, "batch": recipe.batch_size, "loader_ms": round(1e3 * reading, 2),
            "step_ms": round(1e3 * stepping, 2), "ratio": round(stepping / reading, 1)}  # fmt: skip


class Synthetic:
    """Random rows of the columns' shapes."""

    def __init__(self, columns: dict[str, Column], classes: int) -> None:
        self.columns, self.classes = columns, classes

    def __call__(self, i: int) -> dict[str, Any]:
        generator = np.random.default_rng(i)
        return {
            name: generator.integers(0, self.classes if name == "label" else 255, column.shape, dtype=np.uint8)
            if column.dtype == "uint8" else generator.random(column.shape, dtype=np.float32)
            for name, column in self.columns.items()
        }  # fmt: skip


def best_of(run: Callable[[], Any], times: int = 3) -> float:
    """The fastest of some runs, in seconds, after one to warm up; of a long one, the first."""
    started = time.perf_counter()
    run()
    first = time.perf_counter() - started
    if first > 5:
        return first
    found = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return min(found)


def measure(scratch: Path, workers: int) -> dict[str, Any]:
    """Everything, task by task."""
    result: dict[str, Any] = {"one_core": per_core(scratch), "prepare": {}, "loader": []}
    known = encoders(scratch)
    sources: dict[str, dict[str, Any]] = {
        "av-mnist": {"mnist": str(publishers.mnist(scratch / "mnist", 8000)),
                     "fsdd": str(publishers.fsdd(scratch / "fsdd"))},
        "ravdess": {"source": str(publishers.ravdess(scratch / "ravdess", 96, (720, 1280)))},
        "vggsound-50k": {"source": str(publishers.vggsound_features(scratch / "vggsound", 600))},
        "crisismmd-v2": {"source": str(publishers.crisismmd(scratch / "crisis", 96)), **known},
        "nyu-depth-v2": {"source": str(publishers.nyu_depth(scratch / "nyu", 120))},
    }  # fmt: skip
    for task, options in sources.items():
        result["prepare"][task] = prepare(task, scratch, workers, **options)
        print(task, result["prepare"][task], flush=True)
    for task, target, rows in (
        ("av-mnist", "image", 2048), ("av-mnist", "audio", 512), ("ravdess", "video", 96), ("ravdess", "audio", 1024),
        ("vggsound-50k", "visual", 1024), ("vggsound-50k", "audio", 4096), ("crisismmd-v2", "image", 4096),
        ("crisismmd-v2", "text", 4096), ("nyu-depth-v2", "rgb", 24), ("nyu-depth-v2", "depth", 24),
    ):  # fmt: skip
        result["loader"].append({"task": task, **loader_against_step(task, scratch, target, rows)})
        print(result["loader"][-1], flush=True)
    return result


def markdown(result: dict[str, Any]) -> str:
    """The figures as two tables."""
    lines = ["| task | instances/s | memory of the main process, each worker (MB) | whole set: disk (GB), hours |",
             "| --- | --: | --: | --: |"]  # fmt: skip
    for task, f in result["prepare"].items():
        lines.append(
            f"| {task} | {f['per_second']:,} | {f['main_mb']:,}, {f['worker_mb']:,} | "
            f"{f['gb_in_all']}, {f['hours_in_all']} |"
        )
    lines += ["", "| task, student sees | batch | loader (ms) | student's step (ms) | step / loader |",
              "| --- | --: | --: | --: | --: |"]  # fmt: skip
    for f in result["loader"]:
        lines.append(
            f"| {f['task']}, {f['target']} | {f['batch']} | {f['loader_ms']} | {f['step_ms']} | {f['ratio']} |"
        )
    one = result["one_core"]
    lines += ["", f"One core, RAVDESS: sound {one['audio_times_real_time']:.0f} times real time; "
              f"720p video {one['video_clips_per_second_centre']} clips/s, with faces "
              f"{one['video_clips_per_second_opencv']} clips/s."]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data-benchmark.json"))
    parser.add_argument("--workers", type=int, default=None, help="default: one a core")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        workers = options.workers or psutil.cpu_count() or 1
        result = {"machine": platform.machine(), "cores": psutil.cpu_count(), "workers": workers,
                  "threads": torch.get_num_threads(), "torch": torch.__version__,
                  **measure(Path(scratch), workers)}  # fmt: skip
    write_text(options.out, json.dumps(result, indent=1))
    write_text(options.out.with_suffix(".md"), markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
