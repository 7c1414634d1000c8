"""A student is tried in a browser: samples, drawings, sounds and texts are answered, nothing leaves, nothing stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mstdistill import Student, refusals
from mstdistill.data.sources import av_digits, av_mnist
from mstdistill.data.sources.published import open_splits
from mstdistill.data.sources.registry import find_task
from mstdistill.data.sources.speech import Speaker
from mstdistill.demo.raw import readers
from mstdistill.errors import ConfigError, DataError, MstdistillError

from . import tiny_hub
from .conftest import Command, refused
from .test_huggingface import documented

FAST = ["cotrain.epochs=2", "specialise.epochs=1", "distill.epochs=2", "alone.epochs=2", "run.trackers=[]",
        "run.page=false", "data.limit=300"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of av-digits."""
    from typer.testing import CliRunner

    from mstdistill.cli import app

    folder = tmp_path_factory.mktemp("demo") / "run"
    done = CliRunner().invoke(app, ["train", "av-digits", "--out", str(folder), *FAST])
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def served(run: Path, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str], Path]]:
    """The demo's address, its process, and the one folder where it may leave files."""
    if find_spec("gradio") is None:
        if os.environ.get("MSTDISTILL_REQUIRE_BROWSER"):
            pytest.fail("needs the extra demo")
        pytest.skip("needs the extra demo")
    room = tmp_path / "room"
    room.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "mstdistill", "demo", str(run), "--port", "0"], cwd=room, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(room)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        shown = [process.stdout.readline(), process.stdout.readline()]
        assert "http://127.0.0.1:" in shown[1], shown + process.stdout.readlines()
        yield shown[1].split()[1], process, room
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_sample_is_clicked_and_a_digit_drawn(
    browser: Any, run: Path, served: tuple[str, subprocess.Popen[str], Path]
) -> None:
    address, process, room = served
    page, errors, asked = browser.new_page(viewport={"width": 1280, "height": 1000}), [], []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.locator("#samples img").nth(3).click(timeout=60_000)
    page.locator("#told", has_text="Clicked: 3").wait_for(timeout=30_000)
    says = [page.locator(f"#says-{number}").inner_text().split("\n") for number in range(4)]
    assert [lines[0] for lines in says] == [
        "distilled student (image)", "student alone (image)", "teacher both (image + audio)", "teacher audio (audio)"
    ]  # fmt: skip
    split = open_splits(find_task("av-digits"), limit=300)["test"]
    inputs, label = split.fetch(np.arange(len(split)), ["image"])
    first = int((label == 3).nonzero()[0, 0])
    student = Student.from_pretrained(run / "student")
    assert says[0][1] == str(int(student.predict(inputs["image"][first : first + 1])))
    assert all(lines[3].endswith("%") for lines in says)

    box = page.locator("#draw-image canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y - 90)
    page.mouse.down()
    for step in range(19):
        page.mouse.move(x, y - 90 + 10 * step)
    page.mouse.up()
    page.wait_for_timeout(1000)  # the canvas hands strokes on after a while
    page.locator("#ask").click()
    page.locator("#told", has_text="What was given.").wait_for(timeout=30_000)
    counts = [page.locator(f"#says-{number}").inner_text().count("%") for number in range(4)]
    assert counts[0] == counts[1] > 0 == counts[2] == counts[3]  # nothing was heard

    page.set_viewport_size({"width": 390, "height": 900})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert errors == []
    assert {url.split("/")[2] for url in asked if url.startswith(("http", "ws"))} == {address.split("/")[2]}
    page.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert process.stdout is not None
    assert process.stdout.read() == ""
    assert list(room.iterdir()) == []


@pytest.mark.slow
def test_the_server_takes_little_and_shows_nothing_else(served: tuple[str, subprocess.Popen[str], Path]) -> None:
    address, _, _ = served

    def status(path: str, body: bytes | None = None, **headers: str) -> int:
        request = urllib.request.Request(address + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status("") == 200
    assert status("", Host="elsewhere.example") == 400
    assert status("gradio_api/file=/etc/passwd") in (403, 404)
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n--x--\r\n'
    upload = {"Content-Type": "multipart/form-data; boundary=x"}
    assert status("gradio_api/upload", form % b"small", **upload) == 200
    assert status("gradio_api/upload", form % bytes(10_100_000), **upload) == 413


def test_what_cannot_be_tried(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(command("demo", tmp_path), "holds no finished run; train it to its end first")
    (tmp_path / "student").mkdir()
    for name in ("summary.json", "student/config.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(refusals, "find_spec", lambda name: None)
    refused(command("demo", tmp_path), "pip install 'mstdistill[demo]'")
    monkeypatch.setattr(refusals, "find_spec", lambda name: name)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(command("demo", tmp_path, "--port", port), f"--port {port}: in use", "0 for any that is free")


def test_a_task_without_raw_form() -> None:
    material = SimpleNamespace(target="audio", data=None, task=find_task("vggsound-50k"))
    with pytest.raises(ConfigError, match="task vggsound-50k: its student sees audio, features"):
        readers(material)
    view = SimpleNamespace(kind="array", modality="radar", name="radar")
    sight = SimpleNamespace(views=(view,))
    own = replace(find_task("own"), modalities={"radar": (8,)})
    material = SimpleNamespace(target="radar", data=object(), task=own, student=sight, teachers=[])
    with pytest.raises(ConfigError, match="sees radar, an array, which nobody draws"):
        readers(material)


@pytest.mark.parametrize(("paper", "strokes"), [(255, 0), (20, 230)])
def test_a_drawn_digit_looks_like_the_data(paper: int, strokes: int) -> None:
    """On white or black paper, anywhere on it, of any size."""
    from sklearn.datasets import load_digits

    alike = []
    for number, digit in enumerate(load_digits().images[:40]):
        large = np.kron(digit / 16.0, np.ones((15, 15)))
        sheet = np.full((300, 400), paper, np.float64)
        top, left = 20 + number, 200 - 3 * number
        sheet[top : top + 120, left : left + 120] += large * (strokes - paper)
        found = av_digits.drawn(Image.fromarray(sheet.astype(np.uint8)), {})
        assert found.shape == (1, 8, 8)
        assert found.dtype == np.float32
        assert 0 <= found.min() < found.max() == 1
        alike.append(np.corrcoef(found.ravel(), digit.ravel())[0, 1])
    assert np.mean(alike) > 0.9
    with pytest.raises(DataError, match="nothing is drawn"):
        av_digits.drawn(Image.new("L", (64, 64), paper), {})


def test_a_spoken_digit_sounds_like_the_data() -> None:
    """However loud, however long the silence around it, at the rate of a microphone."""
    speaker, generator = Speaker(1), np.random.default_rng(0)
    wave = av_digits._spoken(speaker, 7, ("en-us", 55, 150), generator)
    speaker.close()
    wanted = av_digits._pictures(wave[None])[0]
    loud = av_digits.resample(0.03 * wave, av_digits.SAMPLE_RATE, 48_000).numpy()
    found = av_digits.heard((np.concatenate([np.zeros(48_000, "f"), loud, np.zeros(20_000, "f")]), 48_000), {})
    assert found.shape == (1, av_digits.MELS, av_digits.FRAMES)
    assert abs(found.mean()) < 1e-3
    assert abs(found.std() - 1) < 1e-2
    shifts = [np.corrcoef(np.roll(found, s, axis=2).ravel(), wanted.ravel())[0, 1] for s in range(-16, 17)]
    assert max(shifts) > 0.8
    short = av_digits.heard((loud[:9_000], 48_000), {})
    assert np.isfinite(short).all()
    with pytest.raises(DataError, match="silence"):
        av_digits.heard((np.zeros(8_000, "f"), 8_000), {})


def test_av_mnist_takes_drawings_and_recordings_as_its_data_are() -> None:
    wave = np.sin(np.arange(4_000, dtype=np.float32) / 5)
    wanted, _ = av_mnist.min_max(av_mnist.square_spectrogram(torch.from_numpy(wave)).numpy()[None])
    found = av_mnist.heard((np.concatenate([np.zeros(900, "f"), wave, np.zeros(900, "f")]), 8_000), {})
    assert np.abs(found - wanted).mean() < 0.01

    sheet = Image.new("L", (280, 280), 255)
    sheet.paste(0, (120, 40, 160, 240))
    mean = np.zeros((28, 28))
    mean[14, 14] = 0.5
    drawn = av_mnist.drawn(sheet, {"mean_image": mean.ravel().tolist()})
    assert drawn.shape == (1, 28, 28)
    assert (drawn[0, 4:24, 12:16] == 1).sum() == 79  # the stroke, 20 pixels high, but where the mean was taken out
    assert drawn[0, 14, 14] == pytest.approx(0.5)
    assert drawn.sum() == pytest.approx(79.5)
    with pytest.raises(DataError, match="mstdistill prepare av-mnist again"):
        av_mnist.drawn(sheet, {})


@pytest.mark.slow
def test_own_data_are_asked_through_their_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    from mstdistill.demo.asking import Asking

    monkeypatch.setenv("MSTDISTILL_HOME", str(tmp_path / "home"))
    for make in (tiny_hub.vit, tiny_hub.bert, tiny_hub.clip):
        make(tmp_path / make.__name__)
    tiny_hub.data_set(tmp_path / "captioned", 90)
    recipe = documented("image-text", tmp_path, tmp_path / "captioned", tmp_path)
    fast = ["cotrain.epochs=1", "distill.epochs=1", "alone.epochs=1"]
    code, _, err = command("train", recipe, *fast, "--out", tmp_path / "run")
    assert code == 0, err
    asking = Asking(tmp_path / "run")
    assert asking.kinds == {"image": "image", "text": "text"}
    assert [one.title for one in asking.networks] == [
        "distilled student (image)", "student alone (image)", "teacher clip (image + text)", "teacher bert (text)"
    ]  # fmt: skip
    picture = tiny_hub.rows(1)["image"][0]
    picture.save(tmp_path / "dropped.png")
    dropped, text = (str(tmp_path / "dropped.png"), None), "a lined thing"
    student = Student.from_pretrained(tmp_path / "run" / "student")
    with torch.no_grad():
        wanted = student(student.view([picture]))[0].softmax(0).tolist()
    first, alone, clip, bert = asking.answer({"image": dropped, "text": text})
    assert list((first or {}).items()) == [
        (name, pytest.approx(share, abs=1e-5)) for name, share in zip(tiny_hub.CLASSES, wanted, strict=True)
    ]
    assert all(sum((one or {}).values()) == pytest.approx(1) for one in (alone, clip, bert))
    assert first != alone
    drawn = asking.answer({"image": (None, {"composite": picture}), "text": " "})
    assert drawn[0] == pytest.approx(first)
    assert drawn[2:] == [None, None]
    assert asking.answer({"image": (None, None), "text": text}) == [None, None, None, pytest.approx(bert)]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="this image"):
        asking.answer({"image": (str(tmp_path / "broken.png"), None), "text": text})
    empty = Image.new("RGB", (32, 32), "white")
    with pytest.raises(MstdistillError, match="nothing given yet"):
        asking.answer({"image": (None, {"composite": empty}), "text": ""})
