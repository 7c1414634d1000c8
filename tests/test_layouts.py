"""MNIST's and NYU's files in the layouts that people have them in: torchvision's, other names, packed."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mstdistill.data.prepared.store import PreparedSplit, read_card
from mstdistill.data.sources import av_mnist
from mstdistill.data.sources.nyu_depth import LABELS, PUBLISHED_NAME, SPLITS, _find

from . import publishers
from .conftest import Command, refused


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSTDISTILL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def digits(folder: Path, name: str = "{}-idx{}-ubyte.gz", first: int = 0) -> Path:
    """MNIST's four files, eight training and four test images; `first` is added to each pixel."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 8), ("t10k", 4)):
        images = np.arange(count * 784).reshape(count, 28, 28) % 200 + first
        for what, data in (("images", images), ("labels", np.arange(count) + (part == "t10k"))):
            path = folder / name.format(f"{part}-{what}", data.ndim)
            publishers.write_idx(path, data)
            if path.suffix != ".gz":
                path.write_bytes(gzip.decompress(path.read_bytes()))
    return folder


@pytest.mark.parametrize("name", ["{}-idx{}-ubyte.gz", "{}-idx{}-ubyte", "{}.idx{}-ubyte", "{}.idx{}-ubyte.gz"])
@pytest.mark.parametrize("below", [".", "raw", "MNIST/raw", "torchvision/data/MNIST/raw"])
def test_mnist_wherever_it_lies(below: str, name: str, tmp_path: Path) -> None:
    digits(tmp_path / "sets" / below, name)
    digits(tmp_path / "sets" / "FashionMNIST" / "raw", first=50)  # torchvision's other sets have the same names
    images, labels, is_test, note = av_mnist._read_mnist(av_mnist._mnist_folder(tmp_path / "sets"))
    assert np.array_equal(images[:, 0] * 255, [*(np.arange(8) * 784 % 200), *(np.arange(4) * 784 % 200)])
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4]
    assert is_test.tolist() == [False] * 8 + [True] * 4
    assert note == "MNIST's own training and test images"


def test_mnist_beside_other_things(tmp_path: Path) -> None:
    """Packed and unpacked; folders that an unpacker named like the files; both ways to write a name."""
    folder = digits(tmp_path / "raw")
    digits(folder, "{}-idx{}-ubyte", first=9)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    digits(folder / "train-images.idx3-ubyte")
    assert av_mnist._mnist_folder(folder) == folder
    assert av_mnist._locate(folder, "train-images") == folder / "train-images-idx3-ubyte"
    assert av_mnist._locate(folder, "t10k-labels") == folder / "t10k-labels-idx1-ubyte.gz"
    (folder / "train-images-idx3-ubyte").unlink()
    (folder / "train-images-idx3-ubyte.gz").unlink()
    assert av_mnist._locate(folder, "train-images") is None


def test_mnist_by_the_command(tmp_path: Path, command: Command) -> None:
    fsdd = publishers.fsdd(tmp_path / "fsdd")
    words = ("prepare", "av-mnist", "--fsdd", fsdd, "--workers", 1, "--mnist")
    publishers.mnist(tmp_path / "MNIST" / "raw", 200)
    assert command(*words, tmp_path / "MNIST" / "raw", "--out", tmp_path / "plain")[0] == 0
    assert command(*words, tmp_path, "--out", tmp_path / "found")[0] == 0
    plain, found = (read_card(tmp_path / name) for name in ("plain", "found"))
    assert found == plain
    shutil.copytree(tmp_path / "MNIST", tmp_path / "copy" / "MNIST")
    refused(command(*words, tmp_path, "--out", tmp_path / "two"), str(tmp_path / "copy" / "MNIST"), "name one of them")
    refused(command(*words, tmp_path / "fsdd", "--out", tmp_path / "two"), "no MNIST files")


def zipped(raw: Path, to: Path) -> Path:
    """As macOS packs a folder: with a shadow of each file."""
    with zipfile.ZipFile(to / "nyu.zip", "w") as archive:
        for path in raw.iterdir():
            archive.writestr(f"__MACOSX/nyu/{path.name}", b"Mac OS X")
            archive.write(path, f"nyu/{path.name}")
        archive.writestr("nyu/.DS_Store", b"Mac OS X")
    return to / "nyu.zip"


def tarred(raw: Path, to: Path) -> Path:
    with tarfile.open(to / "nyu.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(raw, "data/nyu")
    return to / "nyu.tar.gz"


def gzipped(raw: Path, to: Path) -> Path:
    """The .mat alone; what goes with it lies beside."""
    (to / f"{PUBLISHED_NAME}.gz").write_bytes(gzip.compress((raw / PUBLISHED_NAME).read_bytes(), 1))
    for path in raw.iterdir():
        if path.name != PUBLISHED_NAME:
            shutil.copy(path, to)
    return to / f"{PUBLISHED_NAME}.gz"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publishers.nyu_depth(tmp_path_factory.mktemp("nyu"), scenes=3, labels40="file")


@pytest.mark.parametrize("pack", [zipped, tarred, gzipped])
def test_nyu_packed(pack: Callable[[Path, Path], Path], scenes: Path, tmp_path: Path, command: Command) -> None:
    """As the .mat itself, from the file and from a folder that holds it."""
    (tmp_path / "downloads").mkdir()
    packed = pack(scenes, tmp_path / "downloads")
    words = ("prepare", "nyu-depth-v2", "--size", "32x64", "--workers", 1, "--source")
    assert command(*words, scenes / PUBLISHED_NAME, "--out", tmp_path / "plain")[0] == 0
    for source in (packed, packed.parent):
        code, shown, err = command(*words, source, "--out", tmp_path / "out")
        assert (code, err) == (0, "")
        assert "may be deleted afterwards" in shown
    plain, found = (read_card(tmp_path / name) for name in ("plain", "out"))
    assert found == plain
    rows = [PreparedSplit(tmp_path / name, "all", plain).fetch(np.arange(3), ["rgb", "depth"])
            for name in ("plain", "out")]  # fmt: skip
    assert all(np.array_equal(rows[0][0][key], rows[1][0][key]) for key in ("rgb", "depth"))
    assert np.array_equal(rows[0][1], rows[1][1])
    assert plain["labels"] == LABELS


def test_nyu_is_unpacked_once(scenes: Path, tmp_path: Path, home: Path) -> None:
    class Screen:
        def say(self, text: str) -> None: ...

    (tmp_path / "a").mkdir()
    packed = zipped(scenes, tmp_path / "a")
    mat, _ = _find(packed, Screen())  # type: ignore[arg-type]
    assert {path.name for path in mat.parent.iterdir()} == {PUBLISHED_NAME, LABELS, SPLITS, ".complete"}
    first = mat.stat().st_mtime_ns
    assert _find(packed.parent, Screen())[0].stat().st_mtime_ns == first  # type: ignore[arg-type]
    (mat.parent / ".complete").unlink()  # a run that was cut off
    assert _find(packed, Screen())[0].stat().st_mtime_ns > first  # type: ignore[arg-type]


def _outside(path: Path) -> None:
    """A tar whose member is a link to a file elsewhere, and climbs out of the folder."""
    path.with_name("elsewhere.mat").write_bytes(b"secret")
    with tarfile.open(path.with_suffix(".tar"), "w") as archive:
        link = tarfile.TarInfo(f"../../{PUBLISHED_NAME}")
        link.type, link.linkname = tarfile.SYMTYPE, str(path.with_name("elsewhere.mat"))
        archive.addfile(link)


def _twice(path: Path) -> None:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for folder in ("a", "b"):
            archive.writestr(f"{folder}/{PUBLISHED_NAME}", b"x")


def _another(path: Path) -> None:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        archive.writestr("readme.txt", b"x")


def _cut(path: Path) -> None:
    whole = io.BytesIO()
    with gzip.GzipFile(fileobj=whole, mode="w") as file:
        file.write(np.random.default_rng(0).bytes(100_000))
    path.with_name(f"{PUBLISHED_NAME}.gz").write_bytes(whole.getvalue()[:50_000])


BAD: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.with_suffix(".zip").write_bytes(b"PK\x03\x04 and no more"), "can't be unpacked"),
    (lambda path: path.with_suffix(".tar.xz").write_bytes(b"\xfd7zXZ\0 and no more"), "can't be unpacked"),
    (lambda path: path.with_name(f"{PUBLISHED_NAME}.gz").write_bytes(b"plain text"), "can't be unpacked"),
    (_cut, "can't be unpacked"),
    (_another, f"no {PUBLISHED_NAME}"),
    (_outside, f"no {PUBLISHED_NAME}"),
    (_twice, "name the file that you mean"),
    (lambda path: path.with_name("other.mat.gz").write_bytes(gzip.compress(b"x")), f"no {PUBLISHED_NAME}"),
    (lambda path: path.with_name(PUBLISHED_NAME).mkdir(), f"no {PUBLISHED_NAME}"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "wanted"), BAD)
def test_nyu_that_cant_be_unpacked(
    make: Callable[[Path], object], wanted: str, tmp_path: Path, home: Path, command: Command
) -> None:
    source = tmp_path / "downloads"
    source.mkdir()
    make(source / "nyu")
    refused(command("prepare", "nyu-depth-v2", "--source", source, "--out", tmp_path / "out"), wanted, str(source))
    left = [path for path in home.rglob("*") if path.is_file()]
    assert left == []
    assert not (tmp_path / "out").exists()


def test_the_help_says_that_a_file_is_taken(command: Command) -> None:
    code, shown, _ = command("prepare", "nyu-depth-v2", "--help")
    assert code == 0
    assert "or the file itself" in " ".join(shown.replace("│", " ").split())
