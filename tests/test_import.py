"""What is loaded when: importing the package costs nothing, lists and refusals need no torch, kernels nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import mstdistill
from mstdistill import shipped

HEAVY = ("accelerate", "datasets", "transformers", "deepspeed", "torchaudio", "sklearn", "pandas", "matplotlib")
# Command lines that need no tensor, with what they end with.
LIGHT = [
    (["--help"], 0),
    (["tasks"], 0),
    (["prepare", "--help"], 0),
    (["prepare", "av-mnist", "--help"], 0),
    (["train", "av-digits", "--dry-run"], 0),
    (["watch", "nowhere"], 2),
    (["settings"], 0),
    (["settings", "--schema"], 0),
    (["new", "mine", "--task", "av-digits"], 0),
    (["completion", "bash"], 0),
    (["settings", "epoks"], 2),
    (["new", "other", "--task", "av-mnst"], 2),
    (["prepare"], 2),
    (["prepare", "av-mnst"], 2),
    (["prepare", "own"], 2),
    (["prepare", "av-mnist", "--dtype", "float8"], 2),
    (["train", "av-digts"], 2),
    (["train", "av-digits", "sed=3"], 2),
    (["train", "av-digits", "task=av-mnst"], 2),
    (["train", "av-digits", "method=mst2"], 2),
    (["train", "av-digits", "target=smell"], 2),
    (["train", "av-digits", "models.image.student.backbone=digits-imge"], 2),
    (["plan", "av-digits", "method=mst2"], 2),
    (["taps", "CNN-J"], 2),
    (["taps"], 2),
    (["report", "nowhere"], 2),
    (["demo", "nowhere"], 2),
    (["evaluate", "nowhere"], 2),
    (["evaluate", "nowhere", "--split", "tset"], 2),
    (["export", "nowhere", "there"], 2),
    (["export", "nowhere", "there", "--format", "onx"], 2),
    (["export", ".", "there", "--format", "onx"], 2),
    (["push", "nowhere", "org/name"], 2),
    (["check", "nowhere"], 2),
    (["import", "x.pth", "--backbone", "CNN-J", "--out", "x.safetensors"], 2),
    (["reproduce", "av-digit"], 2),
    (["reproduce", "av-digits", "seds=[0]"], 2),
]
_RUN_ALL = """
import contextlib, io, json, sys
from mstdistill.cli import main
found = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["mstdistill", *words]
    code = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    found.append([code, sorted(name for name in ("torch", "datasets", "numpy") if name in sys.modules)])
print(json.dumps(found))
"""


@pytest.mark.parametrize("module", ["mstdistill", "mstdistill.kernels", "mstdistill.cli"])
def test_nothing_heavy_is_imported(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_lists_and_refusals_load_no_torch(tmp_path: Path) -> None:
    commands = json.dumps([words for words, _ in LIGHT])
    done = subprocess.run([sys.executable, "-c", _RUN_ALL, commands], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for (words, code), (got, loaded) in zip(LIGHT, json.loads(done.stdout), strict=True):
        assert (got, loaded) == (code, []), words


def test_the_index_of_what_ships_is_true() -> None:
    facts = json.loads(shipped.INDEX.read_text())
    assert facts == json.loads(json.dumps({"files": shipped.files_digest(), **shipped._facts()}))


def test_an_index_of_other_files_is_renewed(tmp_path: Path) -> None:
    index = tmp_path / "shipped.json"
    assert shipped.shipped(index) == shipped.shipped()
    assert index.read_text() == shipped.INDEX.read_text()
    index.write_text(index.read_text().replace(shipped.files_digest(), "0" * 64).replace("AV-MNIST", "changed"))
    assert shipped.shipped(index) == shipped.shipped()
    assert index.read_text() == shipped.INDEX.read_text()


def test_every_public_name_is_there() -> None:
    for name in mstdistill.__all__:
        assert getattr(mstdistill, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = mstdistill.distil  # type: ignore[attr-defined]
