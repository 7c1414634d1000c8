"""A stage, and how one runs: in a process of its own, within its time, whatever becomes of it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .device import Device

ROOT = Path(__file__).parents[1]


class Failed(Exception):
    """A stage's result is bad; with the figures that it has all the same."""

    def __init__(self, why: str, figures: dict[str, Any] | None = None) -> None:
        super().__init__(why)
        self.figures = figures or {}


@dataclass(frozen=True)
class Stage:
    """Something to find out.

    Attributes:
        name: for the command line, and of its result's file.
        about: what, in a line.
        seconds: that it may take.
        needs: packages without which it is skipped.
        run: called with the device and a folder for files; its figures. Raises `Failed`, or anything.
    """

    name: str
    about: str
    seconds: float
    needs: tuple[str, ...]
    run: Callable[[Device, Path], dict[str, Any]]


def here(stage: Stage, device: Device, out: Path) -> None:
    """Run a stage in this process and write its result; every error is one."""
    folder = out / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    result: dict[str, Any] = {"stage": stage.name, "device": device.name, "key": key(device), "ok": True}
    try:
        result["figures"] = stage.run(device, folder)
    except Failed as error:
        result |= {"ok": False, "error": str(error), "figures": error.figures}
    except Exception as error:  # of a kernel, a driver, a library: the next stage is run all the same
        said = str(error).splitlines() or [""]
        result |= {"ok": False, "error": f"{type(error).__name__}: {said[0][:300]}"}
    _write(out, stage, {**result, "seconds": round(time.monotonic() - started, 1)})


def apart(stage: Stage, device: Device, out: Path, words: list[str]) -> dict[str, Any]:
    """Run a stage in a process of its own; its result, also where it died or ran out of time."""
    missing = [name for name in stage.needs if importlib.util.find_spec(name) is None]
    facts: dict[str, Any] = {"stage": stage.name, "device": device.name, "key": key(device)}
    if missing:
        return _write(out, stage, {**facts, "ok": True, "skipped": f"{', '.join(missing)} not installed"})
    path, started = out / f"{stage.name}.json", time.monotonic()
    path.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in device.unset}
    command = [sys.executable, "-m", "mstdistill.gpu_day", "--out", str(out), "--alone", stage.name, *words]
    limit = stage.seconds * device.scale
    code = _ended(command, {**environment, **device.environment}, limit)
    why = f"not done after {limit:.0f} s" if code is None else f"its process ended with {code}"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    return _write(out, stage, {**facts, "ok": False, "error": why, "seconds": round(time.monotonic() - started, 1)})


def _ended(command: list[str], environment: dict[str, str], limit: float) -> int | None:
    """A process's exit code; None: it took too long. Whatever it started ends with it: it would hold the device."""
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def done_before(stage: Stage, device: Device, out: Path) -> dict[str, Any] | None:
    """A good result of the same code on the same device."""
    try:
        found: dict[str, Any] = json.loads((out / f"{stage.name}.json").read_text())
    except (OSError, ValueError):
        return None
    return found if found.get("ok") and not found.get("skipped") and found.get("key") == key(device) else None


def key(device: Device) -> str:
    """Of the code and the device: results of others are none."""
    digest = hashlib.sha256(device.name.encode())
    for folder in (ROOT, ROOT.parent / "kernels"):  # where it isn't installed, the kernels lie beside it
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("tiles.json")]):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _write(out: Path, stage: Stage, result: dict[str, Any]) -> dict[str, Any]:
    """To a temporary name, then renamed: a result is whole or not there."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{stage.name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)
    return result
