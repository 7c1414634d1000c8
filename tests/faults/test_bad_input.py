"""Every mistake a user can make at the command line: one line, exit code 2, nothing lost."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from mstdistill.kernels.launch import triton_missing
from safetensors.torch import load_file

from mstdistill.data.prepared import store
from tests.conftest import Command, refused
from tests.publishers import write_idx
from tests.ready import Program, run

CLI = "mstdistill.cli"

FAST = ["cotrain.epochs=1", "specialise.epochs=1", "distill.epochs=2", "batch_size=16", "run.trackers=[]",
        "run.page=false",
        "run.checkpoint_seconds=0", "alone.epochs=1"]  # fmt: skip


def tiny_columns(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.random((count, 1, 8, 8), dtype=np.float32),
        "audio": rng.random((count, 1, 32, 32), dtype=np.float32),
        "label": rng.integers(0, 10, count),
    }


def prepared(folder: Path, change: Callable[[dict[str, np.ndarray]], None] | None = None, **card: object) -> Path:
    splits = {name: tiny_columns(48, i) for i, name in enumerate(("train", "validation", "test"))}
    if change:
        change(splits["train"])
    return store.write(folder, splits, {"task": "av-digits", **card})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return prepared(tmp_path / "data")


def test_kernels_that_cannot_run_here(
    command: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train", "av-digits", f"data.dir={data}", "--out", str(tmp_path / "run"))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("MSTDISTILL_KERNELS", "triton")
    refused(command(*words), f"MSTDISTILL_KERNELS=triton: {triton_missing() or 'tensors are on cpu'}")
    monkeypatch.setenv("MSTDISTILL_KERNELS", "fast")
    refused(command(*words), "MSTDISTILL_KERNELS='fast': must be one of auto, triton, torch")


@pytest.mark.parametrize(("words", "expected"), [
    (["train", "av-digts"], "unknown task or recipe 'av-digts'; did you mean av-digits"),
    (["train", "av-digits", "task=av-mnst"], "unknown task 'av-mnst'; did you mean av-mnist"),
    (["train", "av-digits", "target=video"], "has no such modality; did you mean image or audio?"),
    (["train", "av-digits", "method=mst2"], "unknown method 'mst2'; did you mean mst"),
    (["train", "av-digits", "distill.epoch=2"], "unknown key 'distill.epoch'; did you mean epochs"),
    (["train", "av-digits", "--preset", "fast"], "unknown preset 'fast'"),
    (["prepare", "av-digit"], "unknown task 'av-digit'"),
    (["prepare", "av-mnist", "--mnst", "x"], "av-mnist has no option '--mnst'; did you mean mnist"),
    (["prepare", "av-mnist"], "--mnist DIR --fsdd DIR"),
    (["taps", "CNN-J"], "unknown backbone 'CNN-J'; did you mean CNN-I"),
    (["evaluate", "nowhere"], "nowhere holds no finished run"),
    (["export", "nowhere", "there"], "nowhere holds no finished run"),
    (["train", "av-mnist", "data.dir=nowhere"], "nowhere holds no prepared data"),
])  # fmt: skip
def test_unknown_names(words: list[str], expected: str, command: Command, tmp_path: Path) -> None:
    refused(command(*words, *(["--out", tmp_path / "r"] if words[0] == "train" else [])), expected)


def teachers(**change: object) -> str:
    both = {"name": "both", "backbone": "digits-both", "modalities": ["image", "audio"], "taps": ["concat"], **change}
    return "models.image.teachers=" + json.dumps([both])


def test_networks_and_routing(command: Command, data: Path, tmp_path: Path) -> None:
    base = ["train", "av-digits", f"data.dir={data}", *FAST, "--out", tmp_path / "r"]
    refused(command(*base, teachers(taps=["concatt"])), "teacher 'both' has no tap 'concatt'; did you mean concat")
    refused(
        command(*base, teachers(modalities=["image", "sound"])), "teacher 'both': av-digits has no modality 'sound'"
    )
    refused(command(*base, teachers(modalities=["audio", "image"])), "teacher 'both' can't take")
    refused(command(*base, teachers(backbone="digits-bth")), "unknown backbone 'digits-bth'; did you mean digits-both")
    refused(command(*base, teachers(options={"wide": 3})), "backbone 'digits-both'", "wide")
    refused(command(*base, teachers(weights="none.safetensors")), "none.safetensors can't be read")
    refused(command(*base, "routing.k=9"), "routing.k=9: must be between 1 and the 4 specialised teachers")


def test_data_files(command: Command, tmp_path: Path) -> None:
    mnist, fsdd = tmp_path / "mnist", tmp_path / "fsdd"
    mnist.mkdir()
    fsdd.mkdir()
    base = ["prepare", "av-mnist", "--mnist", mnist, "--fsdd", fsdd, "--out", tmp_path / "out"]
    refused(command(*base), "no MNIST files")
    images, labels = mnist / "t10k-images-idx3-ubyte.gz", mnist / "t10k-labels-idx1-ubyte.gz"
    write_idx(images, np.zeros((200, 28, 28)))
    refused(command(*base), "t10k-labels")
    write_idx(labels, np.arange(199) % 10)
    refused(command(*base), "200 images but 199 labels")
    write_idx(labels, np.arange(200) % 10)
    refused(command(*base), "no Free Spoken Digit recordings")
    (fsdd / "0_jackson_0.wav").write_bytes(b"RIFF")
    kept = images.read_bytes()
    images.write_bytes(labels.read_bytes())
    refused(command(*base), "holds labels where images belong; swapped files?")
    images.write_bytes(gzip.compress(gzip.decompress(kept)[:-1]))
    refused(command(*base), "truncated")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("change", "words"), [
    (lambda c: c["label"].__setitem__(5, 10), "label 10 of instance 5 is out of range: the task has 10 classes"),
    (lambda c: c["image"].__setitem__((7, 0, 1, 1), np.nan), "NaN or Inf in modality 'image' of instance 7"),
    (lambda c: c["audio"].__setitem__((3, 0, 0, 0), np.inf), "NaN or Inf in modality 'audio' of instance 3"),
])  # fmt: skip
def test_bad_values_in_the_data(
    change: Callable[[dict[str, np.ndarray]], None], words: str, command: Command, tmp_path: Path
) -> None:
    folder = prepared(tmp_path / "bad", change)
    refused(command("train", "av-digits", f"data.dir={folder}", *FAST, "--out", tmp_path / "r"), words)


def test_prepared_data_that_is_damaged_or_of_another_task(command: Command, data: Path, tmp_path: Path) -> None:
    base = ["train", "av-digits", *FAST, "--out", tmp_path / "r"]
    other = prepared(tmp_path / "other", task="av-mnist")
    refused(command(*base, f"data.dir={other}"), "holds data of 'av-mnist', not of 'av-digits'")
    arrow = next((data / "train").glob("*.arrow"))
    whole = arrow.read_bytes()
    arrow.write_bytes(whole[:1000])
    refused(command(*base, f"data.dir={data}"), "train", "prepare the data again")
    shutil.rmtree(data / "train")
    refused(command(*base, f"data.dir={data}"), "missing or damaged")


def test_lengths_that_differ() -> None:
    columns = tiny_columns(5)
    columns["audio"] = columns["audio"][:4]
    with pytest.raises(store.DataError, match=r"split 'train': modality lengths differ: .*'image': 5, 'audio': 4"):
        store.write(Path("never"), {"train": columns}, {})
    assert store.DataError.exit_code == 2


def test_nan_in_the_loss(command: Command, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    settings = [word for word in FAST if not word.startswith("cotrain")]
    result = command(
        "train", "av-digits", f"data.dir={data}", *settings, "cotrain.epochs=9", "cotrain.lr=1e30", "--out", out
    )
    refused(result, "NaN or Inf in", "at cotrain, epoch", "step", "lower the learning rate", str(out))
    assert ("saved" in result[2]) or ("kept" in result[2])


def test_run_folder_of_another_config(command: Command, data: Path, tmp_path: Path) -> None:
    base = ["train", "av-digits", f"data.dir={data}", *FAST, "--out", tmp_path / "r"]
    assert command(*base, "run.stop_after=cotrain")[0] == 0
    refused(command(*base, "distill.lr=0.5", "seed=4"), "holds a run of another config (differs in distill.lr, seed)")
    assert command(*base, "run.stop_after=specialise", "run.keep_checkpoints=5")[0] == 0  # these may change


def interrupted_run(data: Path, out: Path, *extra: str, signals: Sequence[int] = (signal.SIGINT,)) -> tuple[int, str]:
    """Signals in the middle of stage 1; the run's exit code and message."""
    job = Program(CLI, "train", "av-digits", f"data.dir={data}", *FAST[1:], "cotrain.epochs=400", *extra, "--out", out)
    deadline = time.monotonic() + 90
    while not list((out / "cotrain" / "checkpoints").glob("0*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    for number in signals:
        job.send_signal(number)
    done = job.wait(60)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_may_ask_twice_and_it_is_no_failure(number: int, data: Path, tmp_path: Path) -> None:
    """Schedulers and launchers both pass their signal on."""
    code, err = interrupted_run(data, tmp_path / "r", signals=(number, number))
    assert code == 0, err
    assert "stopped in cotrain, epoch" in err
    assert f"resume with: mstdistill train av-digits data.dir={data}" in err
    assert list((tmp_path / "r" / "cotrain" / "checkpoints").glob("0*"))


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on_and_damage_is_passed_over(
    command: Command, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    code, err = interrupted_run(data, out)
    assert code == 130, err
    assert "stopped in cotrain, epoch" in err
    assert "state saved" in err
    assert "resume with: mstdistill train av-digits" in err
    assert len(err.strip().splitlines()) == 1, err
    kept = sorted((out / "cotrain" / "checkpoints").glob("0*"))
    assert len(kept) == 2
    # the newest is damaged, and a later one was never finished: the last good one before them is used
    model = kept[1] / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-100])
    half = kept[1].parent / "0999000000"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    words = ["train", "av-digits", f"data.dir={data}", *FAST[1:], "cotrain.epochs=400", "--out", out]
    going = Program(CLI, *words)
    while "continues at" not in going.said():
        assert going.poll() is None, going.complained()
        time.sleep(0.02)
    going.send_signal(signal.SIGKILL)
    shown = going.wait().stdout
    assert shown.count("is damaged") == 2, shown
    assert "using the last good one before it" in shown
    epoch = int(kept[0].name) // 1_000_000
    assert f"cotrain: continues at epoch {epoch}, step {int(kept[0].name) % 1_000_000}" in shown


def test_disk_full_while_saving(data: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the kernel refuses the write in the same place."""
    out = tmp_path / "r"
    words = ["train", "av-digits", f"data.dir={data}", *FAST]
    assert run(CLI, *words, "run.stop_after=cotrain", "--out", out).returncode == 0
    before = (out / "cotrain" / "result.safetensors").read_bytes()

    full = run(CLI, *words, "--out", out, file_bytes=200_000)
    refused((full.returncode, "", full.stderr), "disk full while saving", "specialise", "nothing was lost")
    assert (out / "cotrain" / "result.safetensors").read_bytes() == before
    assert not list((out / "specialise").rglob("*.tmp"))
    assert run(CLI, *words, "--out", out).returncode == 0
    assert (out / "summary.md").exists()


def test_cache_of_other_teachers_is_rebuilt_and_said(command: Command, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    base = ["train", "av-digits", f"data.dir={data}", *FAST, "--out", out]
    assert command(*base)[0] == 0
    wanted = load_file(out / "distill" / "result.safetensors")
    shutil.rmtree(out / "distill")
    manifest = out / "cache" / "teachers-train" / "cache.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**facts, "fingerprint": "of other teachers"}))
    code, shown, _ = command(*base)
    assert code == 0
    assert "it is of other teachers, masks or data; building it anew" in shown
    assert json.loads(manifest.read_text()) == facts
    found = load_file(out / "distill" / "result.safetensors")
    assert all((found[name] == wanted[name]).all() for name in wanted)


def test_fresh_deletes_runs_alone(command: Command, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    refused(
        command("train", "av-digits", f"data.dir={data}", *FAST, "--out", out, "--fresh"),
        "holds no run; it is left alone",
    )
    assert (out / "thesis.txt").exists()


def test_commands_of_a_finished_run(command: Command, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    base = ["train", "av-digits", f"data.dir={data}", *FAST, "run.trackers=[tensorboard]", "--out", out]
    code, shown, _ = command(*base)
    assert code == 0
    for word in ("student alone", "teacher both", "distilled student", "routing", str(out)):
        assert word in shown
    assert list(out.rglob("events.out.tfevents*"))
    code, shown, _ = command("evaluate", out)
    assert code == 0
    figures = json.loads((out / "evaluation-test.json").read_text())
    summary = json.loads((out / "summary.json").read_text())
    assert figures["accuracy"] == pytest.approx(summary["networks"][-1]["test"]["accuracy"])
    refused(command("evaluate", out, "--split", "tst"), "split 'tst': did you mean test")
    assert command("export", out, tmp_path / "student")[0] == 0
    assert (tmp_path / "student" / "README.md").read_text().startswith("---")
    refused(command("export", out, tmp_path / "student"), "is there already")
    assert command("tasks")[0] == 0
    code, shown, _ = command("taps", "CNN-I")
    assert code == 0
    assert "106," in shown  # the mask over 596 features has 106 million parameters, and the user sees it
    code, shown, _ = command("train", "av-digits", "--dry-run")
    assert "hidden_dim_factor" in shown
