"""Whether data are prepared and read as fast as in another checkout of this project, in one run, as ratios.

python scripts/compare_data.py --before ../mstdistill-before --out docs/results/data-ratios.json    (twenty minutes)

The two take turns at the same generated files (see benchmark_data.py) and the same prepared folders; a ratio is the
best time before over the best time now: 1.05 is 5 % faster.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
# Where a name lies now, and where it lay.
PLACES = {
    "Loader": ("data.feeding.loader", "data.loader"),
    "DatasetSplit": ("data.sources.python", "data.loader"),
    "PreparedSplit": ("data.prepared.store", "data.store"),
    "read_card": ("data.prepared.store", "data.store"),
    "open_own": ("data.sources.own", "data.own"),
    "open_views": ("data.prepared.views", "data.views"),
    "make_view": ("data.prepared.views", "data.views"),
}
LOADED = (("av-mnist", "image", 64), ("av-mnist", "audio", 64), ("ravdess", "video", 32), ("ravdess", "audio", 32),
          ("vggsound-50k", "visual", 128), ("vggsound-50k", "audio", 512), ("crisismmd-v2", "image", 512),
          ("crisismmd-v2", "text", 512), ("nyu-depth-v2", "rgb", 6), ("nyu-depth-v2", "depth", 6))  # fmt: skip


def find(name: str) -> Any:
    """A name of the checkout that this process runs."""
    for place in PLACES[name]:
        try:
            return getattr(importlib.import_module(f"mstdistill.{place}"), name)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"{name} is at none of {PLACES[name]}")


def best(run: Callable[[], Any], seconds: float = 2.0) -> float:
    """The fastest run, of as many as fit in a time."""
    run()
    taken: list[float] = []
    started = time.perf_counter()
    while not taken or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _through(reading: Any) -> None:
    """An epoch as training goes through it: each batch is let go before the next."""
    import torch

    for batch in reading.epoch():
        batch.to(torch.device("cpu"))


def read_prepared(folders: dict[str, str]) -> dict[str, float]:
    """Seconds of an epoch from each prepared folder, in random order, to float32."""
    loader, split, card = find("Loader"), find("PreparedSplit"), find("read_card")
    found = {}
    for task, target, batch in LOADED:
        if task not in folders:
            continue
        folder = Path(folders[task])
        whole = split(folder, "all", card(folder))
        reading = loader(whole, [target], min(batch, len(whole) // 4), shuffle=True)
        found[f"{task}, {target}"] = best(partial(_through, reading))
    return found


class Tensors:
    """A data set in Python."""

    def __init__(self, kind: Callable[[Any], Any], rows: int = 2048) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self.a = [kind(torch.randn(64, generator=generator)) for _ in range(rows)]
        self.b = [kind(torch.randn(3, 16, 16, generator=generator)) for _ in range(rows)]

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"a": self.a[i], "b": self.b[i], "label": i % 10}


def read_python(_: dict[str, str]) -> dict[str, float]:
    """Seconds of an epoch of items in Python: tensors, and arrays of doubles."""
    loader, split = find("Loader"), find("DatasetSplit")
    found = {}
    for name, kind in (("tensors", lambda x: x), ("arrays of doubles", lambda x: x.double().numpy())):
        reading = loader(split(Tensors(kind)), ["a", "b"], 128, shuffle=True)
        found[f"items in Python, {name}"] = best(partial(_through, reading))
    return found


def own_views(folders: dict[str, str]) -> dict[str, float]:
    """Seconds in which a user's pictures and arrays are opened and prepared."""
    from mstdistill.config import DataSettings
    from mstdistill.engine.progress import Screen

    opened, view, views = find("open_own"), find("make_view"), find("open_views")

    def go() -> None:
        with tempfile.TemporaryDirectory() as home:
            os.environ["MSTDISTILL_HOME"] = home
            data = opened(DataSettings(dir=folders["own"]))
            made = [view(data, name, None, "model") for name in ("photo", "wide")]
            views(data, made, group=0, limit=None, split="protocol", screen=Screen(True))

    return {"your own pictures and arrays, prepared": best(go)}


JOBS = {"read_prepared": read_prepared, "read_python": read_python, "own_views": own_views}


def own_data(folder: Path, rows: int = 400) -> str:
    """Pictures (JPEG) and arrays with classes, few enough for one process."""
    import io

    import datasets
    import numpy as np
    from PIL import Image

    datasets.disable_progress_bars()
    random = np.random.default_rng(0)

    def picture() -> dict[str, Any]:
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (96, 96, 3), dtype=np.uint8)).save(file, "JPEG")
        return {"bytes": file.getvalue(), "path": None}

    made = datasets.Dataset.from_dict({
        "photo": [picture() for _ in range(rows)], "wide": random.standard_normal((rows, 16, 16)).tolist(),
        "label": [f"class {i % 7}" for i in range(rows)],
    })  # fmt: skip
    made.cast_column("photo", datasets.Image()).save_to_disk(str(folder))
    return str(folder)


def raw_files(scratch: Path) -> dict[str, list[str]]:
    """The publishers' files, generated; by task the options of `prepare`."""
    sys.path.insert(0, str(HERE))
    from scripts.benchmark_data import encoders
    from tests import publishers

    known = [f"--{name.replace('_', '-')}={value}" for name, value in encoders(scratch).items()]
    return {
        "av-mnist": [f"--mnist={publishers.mnist(scratch / 'mnist', 3000)}",
                     f"--fsdd={publishers.fsdd(scratch / 'fsdd')}"],
        "ravdess": [f"--source={publishers.ravdess(scratch / 'ravdess', 32, (720, 1280))}"],
        "vggsound-50k": [f"--source={publishers.vggsound_features(scratch / 'vggsound', 400)}"],
        "crisismmd-v2": [f"--source={publishers.crisismmd(scratch / 'crisis', 32)}", *known],
        "nyu-depth-v2": [f"--source={publishers.nyu_depth(scratch / 'nyu', 80)}"],
    }  # fmt: skip


def run(tree: Path, words: list[str]) -> str:
    """A command in a checkout; its output."""
    env = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run(
        [sys.executable, *words], env=env, cwd=tree, check=True, capture_output=True, text=True
    ).stdout


def measure(before: Path, scratch: Path, rounds: int, only: str | None) -> dict[str, Any]:
    """Best seconds of both, by what was done."""
    raw = {task: options for task, options in raw_files(scratch).items() if only in (None, task)}
    taken: dict[str, dict[str, list[float]]] = {}

    def note(what: str, who: str, seconds: float) -> None:
        taken.setdefault(what, {}).setdefault(who, []).append(seconds)

    folders = {"own": own_data(scratch / "own")}
    for number in range(rounds):
        for who, tree in (
            (("before", before), ("now", HERE)) if number % 2 == 0 else (("now", HERE), ("before", before))
        ):
            for task, options in raw.items():
                out = scratch / f"{task}-{who}-{number}"
                run(tree, ["-m", "mstdistill", "prepare", task, "--out", str(out), *options])
                log = json.loads(out.with_name(out.name + ".prepare.json").read_text())
                note(f"prepare {task}", who, log["seconds"])
                folders.setdefault(task, str(out))
            for job in JOBS if only is None else ("read_prepared",):
                said = run(tree, [__file__, "--job", job, "--folders", json.dumps(folders)])
                for what, seconds in json.loads(said.splitlines()[-1]).items():
                    note(what, who, seconds)
            print(f"round {number + 1} of {rounds}, {who}: done", flush=True)
    return {
        what: {**{who: round(min(times), 6) for who, times in found.items()},
               "ratio": round(min(found["before"]) / min(found["now"]), 3)}
        for what, found in taken.items()
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the other checkout")
    parser.add_argument("--out", type=Path, default=Path("data-ratios.json"))
    parser.add_argument("--rounds", type=int, default=4)
    tasks = sorted({task for task, _, _ in LOADED})
    parser.add_argument("--only", choices=tasks, help="this task alone, into what --out has of the others")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--folders", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(JOBS[options.job](options.folders)))
        return
    if options.before is None:
        parser.error("--before: the other checkout's folder is needed")
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options.before.resolve(), Path(scratch), options.rounds, options.only)
    earlier = json.loads(options.out.read_text()) if options.only and options.out.exists() else {}
    options.out.write_text(json.dumps({**earlier, **found}, indent=1))
    for what, figures in found.items():
        print(f"{figures['ratio']:6.3f}  {what}")


if __name__ == "__main__":
    main()
