"""The paper's authors' own files and preprocessing: miniatures of their layouts, and what doesn't fit in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstdistill.backbones.registry import build
from mstdistill.data.decode.faces import Faces
from mstdistill.data.decode.spectra import resample, resample_kaiser
from mstdistill.data.prepared.store import PreparedSplit, read_card
from mstdistill.data.sources.ravdess import ReadClip
from mstdistill.data.sources.registry import find_task
from mstdistill.weights import load_weights

from . import publishers
from .conftest import Command, refused


def ravdess(root: Path, rows: int = 6, kind: str = "uint8") -> Path:
    """`RAVDESS_preprocessed_npy`: BGR crops, MFCCs of which row 2's are constant, labels."""
    folder, g = root / "RAVDESS_preprocessed_npy", np.random.default_rng(0)
    folder.mkdir(parents=True)
    np.save(folder / "video_data.npy", g.integers(3, 250, (rows, 15, 3, 224, 224), dtype=np.uint8).astype(kind))
    audio = g.normal(-300, 90, (rows, 15, 156))
    audio[2] = -7.5
    np.save(folder / "audio_data.npy", audio)
    np.save(folder / "label_data.npy", np.arange(rows)[::-1] % 8)
    return folder


def av_mnist(root: Path, flat: bool = True, rows: tuple[int, int] = (6, 4)) -> Path:
    """`avmnist`: images as they come back from their components, spectrograms, labels."""
    folder, g = root / "avmnist", np.random.default_rng(0)
    for part, count in zip(("train", "test"), rows, strict=True):
        for kind, shape in (("image", (784,) if flat else (28, 28)), ("audio", (112, 112))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            values = g.normal(0, 3, (count, *shape))
            values[1] = 4.0 if kind == "image" and part == "test" else values[1]
            np.save(folder / kind / f"{part}_data.npy", values)
        np.save(folder / f"{part}_labels.npy", np.arange(count) + (4 if part == "test" else 0))
    return folder


def nyu_depth(root: Path, scenes: int = 3, colours: str = "uint8") -> Path:
    """`NYU-Depth-V2/NYU-Depth-V2_data.mat`: scene 1 is a wall at one distance."""
    import h5py

    folder, g = root / "NYU-Depth-V2", np.random.default_rng(0)
    folder.mkdir(parents=True)
    with h5py.File(folder / "NYU-Depth-V2_data.mat", "w") as file:
        file["images"] = g.integers(0, 256, (scenes, 3, 640, 480)).astype(colours)
        depths = g.random((scenes, 640, 480)) * np.arange(1, scenes + 1)[:, None, None] + 1
        depths[1] = 2.5
        file["depths"] = depths
        file["labels40"] = g.integers(0, 41, (scenes, 640, 480)).astype(np.uint8)
    return folder


LAYOUTS: dict[str, tuple[Callable[[Path], Path], tuple[str, str]]] = {
    "ravdess": (ravdess, ("video", "audio")),
    "av-mnist": (av_mnist, ("image", "audio")),
    "nyu-depth-v2": (nyu_depth, ("rgb", "depth")),
}


def opened(folder: Path, names: tuple[str, ...]) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any]]:
    """All rows as networks see them, labels, and the card."""
    card = read_card(folder)
    split = PreparedSplit(folder, "all", card)
    inputs, label = split.fetch(np.arange(len(split)), names)
    return {name: values.numpy() for name, values in inputs.items()}, label.numpy(), card


def scaled(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Min-max over these axes; constant ones become 0."""
    low, high = values.min(axes, keepdims=True), values.max(axes, keepdims=True)
    found: np.ndarray = np.where(high > low, (values - low) / np.where(high > low, high - low, 1), 0)
    return found


def prepare(command: Command, task: str, source: Path, out: Path, *words: object) -> None:
    code, _, err = command("prepare", task, "--source", source, "--out", out, "--workers", 1, *words)
    assert (code, err) == (0, ""), err


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_ravdess(kind: str, command: Command, tmp_path: Path) -> None:
    source = ravdess(tmp_path / "raw", kind=kind)
    prepare(command, "ravdess", source, tmp_path / "out")
    inputs, label, card = opened(tmp_path / "out", ("video", "audio"))
    bgr = np.load(source / "video_data.npy").astype(np.float64)
    assert np.allclose(inputs["video"], scaled(bgr, (0, 1, 3, 4))[:, :, ::-1], atol=1e-6)
    audio = np.load(source / "audio_data.npy")
    assert np.allclose(inputs["audio"], scaled(audio, (1, 2)), atol=1e-6)
    assert not inputs["audio"][2].any()
    assert label.tolist() == [5, 4, 3, 2, 1, 0]
    assert (card["order"], card["constant"]["audio"]) == ("released", 1)
    assert card["modalities"]["video"]["dtype"] == kind
    assert "BGR" in card["colours"]


@pytest.mark.parametrize("flat", [True, False])
def test_av_mnist(flat: bool, command: Command, tmp_path: Path) -> None:
    source = av_mnist(tmp_path / "raw", flat)
    prepare(command, "av-mnist", source, tmp_path / "out", "--dtype", "float32")
    inputs, label, card = opened(tmp_path / "out", ("image", "audio"))
    for kind, side in (("image", 28), ("audio", 112)):
        rows = np.concatenate([np.load(source / kind / f"{part}_data.npy") for part in ("train", "test")])
        assert np.allclose(inputs[kind], scaled(rows.reshape(10, 1, side, side), (1, 2, 3)), atol=1e-6)
    assert label.tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert (card["order"], card["constant"]) == ("released", {"image": 1, "audio": 0})


@pytest.mark.parametrize("colours", ["uint8", "float64"])
def test_nyu_depth(colours: str, command: Command, tmp_path: Path) -> None:
    import h5py

    source = nyu_depth(tmp_path / "raw", colours=colours)
    prepare(command, "nyu-depth-v2", source, tmp_path / "out")
    inputs, label, card = opened(tmp_path / "out", ("rgb", "depth"))
    with h5py.File(source / "NYU-Depth-V2_data.mat") as file:
        images, depths, classes = (np.asarray(file[key]) for key in ("images", "depths", "labels40"))
    assert np.allclose(inputs["rgb"], scaled(images.transpose(0, 1, 3, 2).astype(float), (0, 2, 3)), atol=1e-6)
    assert np.allclose(inputs["depth"][:, 0], scaled(depths.transpose(0, 2, 1), (1, 2)), atol=1e-6)
    assert np.array_equal(label, classes.transpose(0, 2, 1))
    assert (card["order"], card["constant"]["depth"]) == ("released", 1)


@pytest.mark.parametrize("task", list(LAYOUTS))
def test_the_folder_its_parent_or_one_above(task: str, command: Command, tmp_path: Path) -> None:
    make, names = LAYOUTS[task]
    folder = make(tmp_path / "downloads" / "authors")
    prepare(command, task, folder, tmp_path / "out")
    for source in (folder.parent, folder.parent.parent):
        prepare(command, task, source, tmp_path / "out")  # bound to the same files: prepared already
    assert opened(tmp_path / "out", names)[2]["settings"]["released"] is True


def saved(change: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    return lambda path: np.save(path, change(np.load(path)))


MISFITS: list[tuple[str, str, Callable[[Path], Any], str]] = [
    ("ravdess", "video_data.npy", saved(lambda x: x[:, :, :, :64]), r"[6, 15, 3, 64, 224], where [N, 15, 3, 224, 224]"),
    ("ravdess", "video_data.npy", saved(lambda x: x[:5]), "audio_data.npy: 6 rows, where video_data.npy has 5"),
    ("ravdess", "audio_data.npy", saved(lambda x: x[:, :, 0]), "[6, 15], where [N, 15, 156]"),
    ("ravdess", "audio_data.npy", saved(lambda x: x.astype(str)), "an array of numbers"),
    ("ravdess", "label_data.npy", saved(lambda x: x + 3), "row 0 has the label 8, where classes are 0 to 7"),
    ("ravdess", "label_data.npy", saved(lambda x: x + 0.5), "row 0 has the label 5.5"),
    ("ravdess", "label_data.npy", saved(lambda x: x[:4]), "4 labels, where video_data.npy has 6 rows"),
    ("ravdess", "label_data.npy", saved(lambda x: x.astype(object)), "no NumPy array that can be read"),
    ("ravdess", "video_data.npy", lambda path: path.write_bytes(path.read_bytes()[:9999]), "no NumPy array"),
    ("ravdess", "audio_data.npy", lambda path: path.write_bytes(b""), "no NumPy array"),
    (
        "ravdess",
        "audio_data.npy",
        lambda path: path.write_bytes(path.read_bytes().replace(b"(6, 15", b"(6, (5")),
        "no NumPy array",
    ),
    ("ravdess", "video_data.npy", Path.unlink, "is missing"),
    ("av-mnist", "image/test_data.npy", saved(lambda x: x[:, :700]), "[4, 700], where [N, 784] or [N, 28, 28]"),
    ("av-mnist", "audio/train_data.npy", saved(lambda x: x[:3]), "3 rows, where train_data.npy has 6"),
    ("av-mnist", "test_labels.npy", saved(lambda x: x + 6), "row 0 has the label 10"),
    ("av-mnist", "test_labels.npy", Path.unlink, "is missing"),
    ("nyu-depth-v2", "NYU-Depth-V2_data.mat", lambda path: path.write_bytes(b"MATLAB 5.0"), "not a readable HDF5"),
]


@pytest.mark.parametrize(("task", "name", "change", "wanted"), MISFITS)
def test_files_that_dont_fit(
    task: str, name: str, change: Callable[[Path], Any], wanted: str, command: Command, tmp_path: Path
) -> None:
    folder = LAYOUTS[task][0](tmp_path / "raw")
    change(folder / name)
    refused(command("prepare", task, "--source", folder, "--out", tmp_path / "out"), name.split("/")[-1], wanted)
    assert not (tmp_path / "out").exists()


def test_one_thing_at_a_time(command: Command, tmp_path: Path) -> None:
    """Two sets of arrays, clips beside them, options of the publishers' files: which is meant isn't guessed."""
    out = ("--out", tmp_path / "out")
    one, two = av_mnist(tmp_path / "raw" / "a"), av_mnist(tmp_path / "raw" / "b")
    refused(command("prepare", "av-mnist", "--source", tmp_path / "raw", *out), f"{one} and {two}", "name one")
    refused(
        command("prepare", "av-mnist", "--source", one, "--mnist", two, *out), "--source", "--mnist", "one or the other"
    )
    refused(command("prepare", "av-mnist", "--source", one / "image", *out), "no avmnist/")
    arrays = ravdess(tmp_path / "RAVDESS")
    (tmp_path / "RAVDESS" / "01-01-01-01-01-01-01.mp4").touch()
    refused(command("prepare", "ravdess", "--source", tmp_path / "RAVDESS", *out), "clips and", str(arrays))
    refused(command("prepare", "ravdess", "--source", arrays, "--faces", "centre", *out), "--faces centre", "already")
    nyu = nyu_depth(tmp_path / "NYU")
    (nyu / "nyu_depth_v2_labeled.mat").touch()
    refused(command("prepare", "nyu-depth-v2", "--source", nyu, *out), "name the file that you mean")


def test_nyu_depth_scaled_scene_by_scene(command: Command, tmp_path: Path) -> None:
    """--released on the publisher's file; a folder of one is not gone on with as the other."""
    raw = publishers.nyu_depth(tmp_path / "raw", scenes=4)
    words = ("--size", "32x64")
    prepare(command, "nyu-depth-v2", raw, tmp_path / "plain", *words)
    prepare(command, "nyu-depth-v2", raw, tmp_path / "released", *words, "--released")
    plain, released = (opened(tmp_path / name, ("rgb", "depth"))[0] for name in ("plain", "released"))
    assert np.array_equal(plain["rgb"], released["rgb"])
    assert np.allclose(released["depth"], scaled(plain["depth"], (1, 2, 3)), atol=1e-5)
    assert not np.allclose(released["depth"], plain["depth"], atol=0.05)
    again = ("prepare", "nyu-depth-v2", "--source", raw, "--out", tmp_path / "plain", *words, "--released")
    refused(command(*again), "prepared otherwise", "--released")


def test_ravdess_as_released(tmp_path: Path) -> None:
    """Frames from the first on; sound through the longer filter and 16 bits."""
    raw = publishers.ravdess(tmp_path / "raw", clips=1, size=(48, 64))
    publishers.write_video(raw / "long.mp4", 160, (48, 64), seed=1)
    ours, theirs = (ReadClip(raw, Faces("centre"), released).see(raw / "long.mp4") for released in (False, True))
    # (160 - 108) // 2 = 26 frames later, and seven frames lie between two that are taken
    assert not np.array_equal(ours, theirs)
    from mstdistill.data.decode.video import read_frames

    first = Faces("centre").crop(read_frames(raw / "long.mp4", [3]), 224)[0]
    assert np.array_equal(theirs[0], first.transpose(2, 0, 1))
    source = next(raw.rglob("03-01-*.wav")), next(raw.rglob("01-01-*.mp4"))
    plain, released = (ReadClip(raw, Faces("centre"), r)(source[::-1])["audio"] for r in (False, True))
    assert 0 < np.abs(plain - released).max() < 0.2


def test_resampling_as_released() -> None:
    """The longer filter keeps a tone of 9,600 Hz and nothing of one of 12,000, which 22,050 Hz can't hold; 16 bits."""
    time = torch.arange(48000, dtype=torch.float32) / 48000
    for pitch, wanted in ((1000, 0.125), (9600, 0.125), (12000, 0.0)):
        tone = 0.5 * torch.sin(2 * torch.pi * pitch * time)
        kept = resample_kaiser(tone, 48000, 22050)
        assert float(kept[200:-200].square().mean()) == pytest.approx(wanted, abs=1e-4)
        assert torch.equal(kept * 32768, (kept * 32768).round())
    assert float(resample(0.5 * torch.sin(2 * torch.pi * 9600 * time), 48000, 22050).square().mean()) < 0.1
    assert float(resample_kaiser(torch.ones(4800) * 1.5, 48000, 22050).max()) < 1


@pytest.mark.parametrize(
    ("name", "classes", "options", "shapes"),
    [
        ("VisualBranchNet", 8, {}, [(1, 15, 3, 224, 224)]),
        ("DSCNN-I", 8, {}, [(1, 15, 3, 224, 224), (1, 15, 156)]),
        ("FuseNet-RGBbranch", 5, {"width": 4}, [(1, 3, 32, 64)]),
        ("FuseNet-I", 5, {"width": 4}, [(1, 3, 32, 64), (1, 1, 32, 64)]),
    ],
)
def test_import_bgr(
    name: str, classes: int, options: dict[str, Any], shapes: list[tuple[int, ...]], command: Command, tmp_path: Path
) -> None:
    """The imported network on RGB is the checkpoint's on BGR."""
    torch.manual_seed(0)
    theirs = build(name, classes, **options).eval()
    for parameter in theirs.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)  # as FuseNet begins, it says nothing that float32 could tell
    torch.save(theirs.state_dict(), tmp_path / "in.pth")
    words = [word for key, value in options.items() for word in ("--option", f"{key}={value}")]
    out = tmp_path / "out.safetensors"
    code, shown, err = command("import", tmp_path / "in.pth", "--backbone", name, *words, "--out", out, "--bgr")
    assert code == 0, err
    assert "BGR" in shown
    ours = build(name, classes, **options).eval()
    load_weights(ours, str(out), "student")
    rgb, *rest = (torch.rand(shape) for shape in shapes)
    bgr = rgb.flip(rgb.shape.index(3, 1))
    with torch.no_grad():
        wanted = theirs(bgr, *rest)
        size = float(wanted.abs().max())
        assert torch.allclose(ours(rgb, *rest), wanted, atol=1e-5 * size)
        assert not torch.allclose(theirs(rgb, *rest), wanted, atol=1e-3 * size)


def test_import_bgr_of_what_sees_no_colours(command: Command, tmp_path: Path) -> None:
    torch.save(build("LeNet5", 10).state_dict(), tmp_path / "in.pth")
    words = (tmp_path / "in.pth", "--backbone", "LeNet5", "--out", tmp_path / "out.safetensors", "--bgr")
    refused(command("import", *words), "--bgr", "LeNet5")
    assert find_task("ravdess").options["released"].kind is bool


def test_the_table_of_differences_is_the_measured_one() -> None:
    docs = Path(__file__).parents[1] / "docs"
    page = (docs / "data.md").read_text()
    for row in json.loads((docs / "results" / "released-differences.json").read_text())["differences"]:
        assert " | ".join(row[name] for name in ("what", "ours", "released", "size", "switch")) in page
