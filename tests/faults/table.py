"""The fault table: each fault is injected into a run; what was lost, how long until it was noticed and until the run
stepped again. Nothing lost means: the same bytes as the run that nothing happened to.

python -m tests.faults.table --out docs/results/faults         writes faults.json and faults.md; nodes need root
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mstdistill.files import write_text

from . import rank_server as server
from .nodes import Pair, two_nodes, why_not

ROOT = Path(__file__).parents[2]
NODE_RUN = [
    "train", "av-digits", "cotrain.epochs=1", "specialise.epochs=1", "distill.epochs=60", "alone.enabled=false",
    "run.trackers=[]", "run.page=false", "data.limit=120",
    "batch_size=8", "run.checkpoint_steps=2", "run.checkpoint_seconds=0",
    "run.timeout_seconds=15",
]  # fmt: skip
Row = dict[str, Any]


def row(fault: str, how: str, lost: str, notice: list[float], resume: list[float], times: int = 1) -> Row:
    return {"fault": fault, "how": how, "times": times, "lost": lost, "notice": notice, "resume": resume}


def difference(one: Path, other: Path) -> str:
    """What of a run's results is not as in another one."""
    stages = [path.parent.name for path in sorted(one.glob("*/result.safetensors"))]
    assert stages, one
    name = "result.safetensors"
    wrong = [s for s in stages if (one / s / name).read_bytes() != (other / s / name).read_bytes()]
    return ", ".join(wrong) if wrong else "nothing"


# processes of one host


def kills(folder: Path, ranks: int, wanted: int) -> list[Row]:
    """SIGKILL after random numbers of steps, rounds of runs until there were enough."""
    struck: list[dict[str, Any]] = []
    lost, seed = set(), 0
    while len(struck) < wanted:
        seed += 1
        place = folder / f"kills-{ranks}-{seed}"
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.rank_server", str(place), "16", str(seed), str(ranks)],
            cwd=ROOT, env={**os.environ, "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        struck += json.loads(done.stdout.splitlines()[-1])["kills"]
        lost.add(difference(place / "whole" / "run", place / "killed" / "run"))
        print(f"{len(struck)} kills of {ranks} processes, lost: {lost}", flush=True)
    training = [kill for kill in struck if kill["training"]]
    starting = [kill for kill in struck if not kill["training"]]
    stages = sorted({f"{kill['stage']} {sum(k['stage'] == kill['stage'] for k in struck)}" for kill in struck})
    said = "; ".join(sorted(lost - {"nothing"})) or "nothing"
    how = f"SIGKILL of a random one of {ranks} in a random step ({', '.join(stages)})"
    rows = [row("a process is killed in training", how, said, [k["noticed"] for k in training if k["noticed"]],
                [k["resumed"] for k in training], len(training))]  # fmt: skip
    if starting:
        noticed = [kill["noticed"] for kill in starting if kill["noticed"]]
        rows.append(row("a process is killed while they meet", "those of the same kills before the first step",
                        said, noticed, [], len(starting)))  # fmt: skip
    return rows


def wait_for(true: Callable[[], Any], seconds: float = 120.0) -> float:
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, "nothing came"
        time.sleep(0.002)
    return time.monotonic() - began


class Host:
    """One process that runs the toy in a folder, started again and again."""

    def __init__(self, folder: Path) -> None:
        self.run, self.log, self.stepped = folder / "run", folder / "log", folder / "stepped"
        folder.mkdir(parents=True)

    def start(self) -> int:
        self.stepped.unlink(missing_ok=True)
        return server.start(self.run, 1)[0]

    def until_stage(self, stage: str) -> None:
        wait_for(lambda: self.stepped.exists() and server.stage_of(self.run) == stage)
        wait_for(lambda: list((self.run / stage / "checkpoints").glob("0*/manifest.json")))

    def end(self, pid: int) -> tuple[int, float]:
        """Exit code, and how long it took."""
        began = time.monotonic()
        code = server.ended([pid], 300.0)[pid]
        return code, time.monotonic() - began

    def finish(self) -> float:
        """Run to the end; seconds until the first step."""
        pid = self.start()
        seconds = wait_for(self.stepped.exists)
        code, _ = self.end(pid)
        assert code == 0, self.log.read_text()[-3000:]
        return seconds


def asked(folder: Path, whole: Path, number: signal.Signals) -> Row:
    host = Host(folder / number.name)
    notice, resume = [], []
    for stage in ("cotrain", "specialise", "distill", "alone"):
        pid = host.start()
        host.until_stage(stage)
        os.kill(pid, number)
        code, seconds = host.end(pid)
        assert code == 0, host.log.read_text()[-3000:]
        notice.append(seconds)
    resume.append(host.finish())
    assert host.log.read_text().count("resume with:") == 4
    return row("a scheduler takes the machine back", f"{number.name} in each stage; the run saves and exits with 0",
               difference(whole, host.run), notice, resume, 4)  # fmt: skip


def damaged(folder: Path, whole: Path, what: str, pattern: str, word: str) -> Row:
    """A byte of a file is flipped while the run is down."""
    host = Host(folder / what.replace(" ", "-"))
    pid = host.start()
    host.until_stage("distill")
    os.kill(pid, signal.SIGKILL)
    host.end(pid)
    path = sorted(host.run.glob(pattern))[-1]
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    resume = host.finish()
    assert word in host.log.read_text(), host.log.read_text()[-3000:]
    return row(f"a bad block: {what}", "a bit flipped; found by its checksum at the next start",
               difference(whole, host.run), [], [resume])  # fmt: skip


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(folder: Path, whole: Path) -> Row:
    place = folder / "full"
    host = Host(place)
    with small_disk(host.run, 120):
        pid = host.start()
        code, _ = host.end(pid)
        said = host.log.read_text()
        assert code == 2, said[-3000:]
        assert "disk full while saving" in said
        subprocess.run(["mount", "-o", "remount,size=64m", str(host.run)], check=True)
        resume = host.finish()
        lost = difference(whole, host.run)
    return row("the disk fills while saving", "a file system of 120 kB, made larger afterwards; one line, exit code 2",
               lost, [], [resume])  # fmt: skip


# two nodes


def training(pair: Pair, out: Path) -> None:
    pair.words = [*NODE_RUN, "--out", str(out)]
    for node in pair.nodes:
        node.log.unlink(missing_ok=True)
    pair.start()
    pair.until(lambda: len(list(out.glob("distill/checkpoints/0*/manifest.json"))) >= 2)


def nodes(folder: Path) -> list[Row]:
    """A node lost, a node that hangs, a cable pulled."""
    rows = []
    with two_nodes(folder) as pair:
        whole = folder / "nodes-whole"
        pair.words = [*NODE_RUN, "--out", str(whole)]
        pair.start()
        pair.finish()
        first, second = pair.nodes
        cases = {"a node is lost": "two network namespaces; cable pulled, all processes killed; a new one",
                 "a node hangs": "SIGSTOP to all of it, run.timeout_seconds=15; then a new one"}  # fmt: skip
        for fault, how in cases.items():
            out = folder / fault.replace(" ", "-")
            training(pair, out)
            began = time.monotonic()
            if fault == "a node is lost":
                second.lose()
            else:
                second.signal(signal.SIGSTOP)
            pair.until(lambda: "lost another one" in first.said())
            notice = time.monotonic() - began
            if fault == "a node hangs":
                second.lose()
            began = time.monotonic()
            pair.start(1)
            pair.until(lambda: "distill: continues at" in first.said())
            resume = time.monotonic() - began
            pair.finish()
            rows.append(row(fault, how, difference(whole, out), [notice], [resume]))
            print(rows[-1], flush=True)
        out = folder / "cable"
        training(pair, out)
        second.cable("down")
        time.sleep(6.0)
        second.cable("up")
        newest = max(path.name for path in out.glob("distill/checkpoints/0*"))
        resume = pair.until(lambda: (out / "distill" / "result.json").exists()
                            or max(path.name for path in out.glob("distill/checkpoints/0*")) > newest)  # fmt: skip
        pair.finish()
        assert "lost another one" not in first.said()
        rows.append(row("a cable is pulled for 6 s", "two network namespaces, run.timeout_seconds=15; they wait",
                        difference(whole, out), [], [resume]))  # fmt: skip
    return rows


# the table


def seconds(values: list[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.median(values):.1f} (most {max(values):.1f})"


def markdown(rows: list[Row]) -> str:
    lines = [
        "| fault | injected how | times | lost | s to notice | s to go on |",
        "| --- | --- | --: | --- | --: | --: |",
    ]
    for r in rows:
        lines.append(f"| {r['fault']} | {r['how']} | {r['times']} | {r['lost']} | {seconds(r['notice'])} "
                     f"| {seconds(r['resume'])} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="without a suffix")
    parser.add_argument("--kills", type=int, default=110, help="of processes, at least")
    given = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    folder, rows = Path(tempfile.mkdtemp()), []
    try:
        rows += kills(folder, 2, given.kills * 2 // 3) + kills(folder, 3, given.kills // 3)
        reference = Host(folder / "whole")
        reference.finish()
        whole = reference.run
        rows += [asked(folder, whole, number) for number in (signal.SIGTERM, signal.SIGUSR1)]
        rows.append(damaged(folder, whole, "a shard of the cache", "cache/*/shard-*.npy", "computing it again"))
        rows.append(damaged(folder, whole, "the newest checkpoint", "distill/checkpoints/0*/model.safetensors",
                            "using the last good one before it"))  # fmt: skip
        if os.geteuid() == 0:
            rows.append(full_disk(folder, whole))
        if reason := why_not():
            print(f"no nodes: {reason}")
        else:
            rows += nodes(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    write_text(given.out.with_suffix(".json"), json.dumps(rows, indent=1))
    write_text(given.out.with_suffix(".md"), markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
