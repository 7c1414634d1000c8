"""What `scripts/setup.sh` leaves when it is stopped, and how the next call mends it, with made-up installers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Takes a package for installed by its metadata, as pip does; told to stall, it waits with the package's half written.
FAKE = """
import os, pathlib, sys, time
if "--version" in sys.argv:
    sys.exit()
site = pathlib.Path(os.environ["SITE"])
with (site / "calls").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
if "fail" in os.environ["FAKE"]:
    sys.exit(1)
(site / "torch").mkdir(exist_ok=True)
if not (site / "torch-2.0.dist-info").exists():
    (site / "torch" / "__init__.py").write_text("")
    (site / "torch-2.0.dist-info").mkdir()
    (site / "torch-2.0.dist-info" / "RECORD").write_text("torch/__init__.py,,0\\ntorch/large.bin,,9\\n")
    if "stall" in os.environ["FAKE"]:
        (site / "torch" / "large.bin").write_text("half")
        print("Downloading torch", flush=True)
        time.sleep(600)
    (site / "torch" / "large.bin").write_text("all of it")
"""


class Clone:
    """A copy of what the script needs, with an environment whose pip is made up."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.venv = folder, folder / ".venv"
        (folder / "scripts").mkdir()
        for name in ("scripts/setup.sh", "scripts/halves.py", "pyproject.toml", "setup.cfg"):
            shutil.copy(ROOT / name, folder / name)
        self.bin = folder / "tools"
        self.bin.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        self.site = next(self.venv.glob("lib/python*/site-packages"))
        for name, text in (("pip/__main__.py", FAKE), ("pip-1.dist-info/RECORD", f"pip/__main__.py,,{len(FAKE)}\n")):
            (self.site / name).parent.mkdir()
            (self.site / name).write_text(text)

    def start(self, how: str = "", **variables: str) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if name not in ("EXTRAS", "PYTHONPATH")}
        env |= {"PYTHON": sys.executable, "FAKE": how, "SITE": str(self.site), "PATH": f"{self.bin}:/usr/bin:/bin",
                "INSTALLER": "" if (self.bin / "uv").exists() else "pip", **variables}  # fmt: skip
        script = "set -euo pipefail; source scripts/setup.sh; echo ready"
        return subprocess.Popen(["bash", "-c", script], cwd=self.folder, env=env, text=True, start_new_session=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                # what was started in the background is deaf to it
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip

    def call(self, how: str = "", **variables: str) -> tuple[int, str]:
        process = self.start(how, **variables)
        said = process.communicate(timeout=300)[0]
        return process.returncode, said

    def calls(self) -> list[str]:
        path = self.site / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_installation_is_mended_by_the_next_call(clone: Clone, number: int) -> None:
    process = clone.start("stall")
    assert process.stdout is not None
    for line in process.stdout:
        if "Downloading" in line:
            break
    os.killpg(process.pid, number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "ready" not in said
    assert not (clone.venv / "installed").exists()
    assert (clone.site / "torch/large.bin").read_text() == "half"

    code, said = clone.call()
    assert (code, said.splitlines()[-1]) == (0, "ready")
    assert "left in halves by an earlier call, installed anew: torch-2.0" in said
    assert (clone.site / "torch/large.bin").read_text() == "all of it"
    assert len(clone.calls()) == 2
    assert clone.call() == (0, "ready\n")  # nothing is done twice
    assert len(clone.calls()) == 2


def test_another_version_that_fails_isnt_taken_for_the_old_one(clone: Clone) -> None:
    assert clone.call()[0] == 0
    before = (clone.folder / "setup.cfg").read_text()
    (clone.folder / "setup.cfg").write_text(before + "\n# newer\n")
    code, said = clone.call("fail")
    assert code == 1
    assert said.splitlines()[-1] == "the installation didn't end (pip); the same command goes on with it"
    (clone.folder / "setup.cfg").write_text(before)
    assert clone.call()[0] == 0
    assert len(clone.calls()) == 3


def test_an_environment_that_was_never_finished_is_made_anew(clone: Clone) -> None:
    shutil.rmtree(clone.venv / "bin")
    uv = clone.bin / "uv"
    uv.write_text(f'#!/bin/sh\necho "$@" >> {clone.folder}/uv-calls\n')
    uv.chmod(0o755)
    code, said = clone.call(EXTRAS="dev")
    assert (code, said.splitlines()[-1]) == (0, "ready")
    assert "making an environment in .venv" in said
    assert (clone.folder / "uv-calls").read_text() == "pip install --python .venv/bin/python -e .[dev]\n"


def test_pip_is_taken_where_it_is_asked_for_and_others_are_refused(clone: Clone) -> None:
    (clone.bin / "uv").write_text("#!/bin/sh\nexit 1\n")
    (clone.bin / "uv").chmod(0o755)
    code, said = clone.call()
    assert code == 1
    assert "INSTALLER=pip" in said
    assert clone.call(INSTALLER="pip")[0] == 0
    assert clone.calls() == ["install --disable-pip-version-check --no-compile -e . --quiet"]
    (clone.venv / "installed").unlink()
    code, said = clone.call(INSTALLER="conda")
    assert (code, said.splitlines()[-1]) == (2, "INSTALLER=conda: uv or pip")


def test_a_folder_that_is_no_environment_is_left_alone(clone: Clone) -> None:
    shutil.rmtree(clone.venv)
    clone.venv.mkdir()
    (clone.venv / "mine").write_text("mine")
    code, said = clone.call()
    assert code == 2
    assert said.splitlines() == [".venv is there and is no virtual environment; move it away and run this again"]
    assert (clone.venv / "mine").read_text() == "mine"
