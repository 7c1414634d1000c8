"""Stages that need torch and Triton alone: are the kernels right, and how fast are they?"""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from .device import Device
from .stage import Failed


def correctness(device: Device, folder: Path) -> dict[str, Any]:
    """The kernels' tests against float64, compiled.

    Raises:
        Failed: a test fails, or none ran.
    """
    report = folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *device.tests]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (folder / "tests.txt").write_text(done.stdout + done.stderr)
    if not report.exists():
        raise Failed(f"pytest ended with {done.returncode}: {_last(done.stdout + done.stderr)}")
    suite = next(ElementTree.parse(report).iter("testsuite"))
    count = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    failing = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    found = {"passed": count["tests"] - count["failures"] - count["errors"] - count["skipped"], "failing": failing}
    if failing or count["errors"] or not found["passed"]:
        raise Failed(f"{len(failing)} of {count['tests']} tests fail: {', '.join(map(str, failing[:3]))}", found)
    return found


def benchmarks(device: Device, folder: Path) -> dict[str, Any]:
    """Each kernel against what else one could use.

    Raises:
        Failed: nothing could be measured.
    """
    from mstdistill.kernels.bench.__main__ import main

    table = folder / "kernels.json"
    plots = ["--plot", str(folder)] if device.graphs else []
    main([*device.benchmark, "--json", str(table), "--markdown", str(folder / "kernels.md"), *plots])
    facts = json.loads(table.read_text())
    others = [row for row in facts["rows"] if row["form"] != "ours"]
    if not others:
        raise Failed(f"nothing was measured: {'; '.join(facts['missing'])[:200]}")
    slowest = min(others, key=lambda row: row["ratio"])
    return {
        "measured": len(facts["rows"]), "left out": facts["missing"],
        "least gain": f"{slowest['ratio']:.2f}x against {slowest['form']}, {slowest['kernel']} {slowest['shape']}",
    }  # fmt: skip


def tiles(device: Device, folder: Path) -> dict[str, Any]:
    """Tiles tried, the best by the cost model first; what is better becomes a launch table.

    Raises:
        Failed: nothing could be timed, or what stands today doesn't run.
    """
    from mstdistill.kernels.tune.__main__ import main

    found = main([*device.tiles, "--out", str(folder / "tiles.json")])
    (folder / "times.json").write_text(json.dumps(found, indent=1) + "\n")
    silent = [name for name, times in found["seconds"].items() if not times]
    figures = {
        "timed": sum(len(times) for times in found["seconds"].values()),
        "not tried for lack of time": len(found["left"]),
        "better": found["gains"], "wrong": [f"{name} ({why})" for name, why in found["wrong"].items()],
        "taken by": f"MSTDISTILL_TILES={folder / 'tiles.json'}",
    }  # fmt: skip
    if silent or not found["seconds"]:
        raise Failed(f"what is chosen today doesn't run: {', '.join(silent)}" if silent else "nothing to time", figures)
    return figures


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"
