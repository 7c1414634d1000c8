"""NYU-Depth-V2 from its publisher's labelled set: pictures, depth, and a class for each pixel.

`nyu_depth_v2_labeled.mat` (HDF5) holds `images` [N, 3, 640, 480], `depths` [N, 640, 480] in metres and `labels` with
894 fine classes. The 40 classes of the benchmark come from `labels40` in that file, from a `labels40.mat` beside it, or
from `classMapping40.mat` (fine class -> 40). `splits.mat` beside it gives the publisher's 795/654 parts. Data protocol:
the arrays transposed to [H, W], 40 classes and 0 = unlabelled, ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError
from ..decode.picture import resize
from ..decode.spectra import min_max
from ..options import WORKERS, Option, max_broken
from ..options import released as released_option
from ..prepared.build import build
from ..prepared.plan import Column, Item, Plan, Watcher
from ..task import Form, Task
from .files import sha256, source_folder
from .packed import is_packed, names_in, unpacked
from .released.arrays import ORDER

SIZE = (480, 640)
LABELS, MAPPING, SPLITS = "labels40.mat", "classMapping40.mat", "splits.mat"  # what may lie beside
PUBLISHED_NAME = "nyu_depth_v2_labeled.mat"
RELEASED_NAME = "NYU-Depth-V2_data.mat"  # the paper's authors' file: images, depths and labels40 in the same layout
CLASSES = (
    "unlabelled", "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture",
    "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling",
    "books", "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person",
    "night stand", "toilet", "sink", "lamp", "bathtub", "bag", "other structure", "other furniture", "other prop",
)  # fmt: skip


def prepare(
    folder: Path,
    screen: Watcher,
    source: str | None = None,
    size: str = "480x640",
    workers: int | None = None,
    max_broken: float = 0.02,
    released: bool = False,
) -> Path:
    """Build NYU-Depth-V2 in `folder`.

    Args:
        source: the labelled .mat or the authors' `NYU-Depth-V2_data.mat`, or a folder that holds one of them; packed
            (zip, gz, tar), it is unpacked into the cache first.
        size: HEIGHTxWIDTH, both multiples of 32; other than 480x640 resizes (labels by the nearest pixel).
        released: each scene's depths scaled alone, as the paper's authors do; so they are from their file.

    Raises:
        DataError: no such file, or one without the expected keys.
    """
    shape = _parse_size(size)
    mat, beside = _find(source_folder(TASK.name, source, "--source DIR, or --source FILE"), screen)
    theirs = mat.name == RELEASED_NAME
    if theirs and not released:
        screen.say(f"{mat} is the authors' own: depths are scaled scene by scene, as with --released")
    released = released or theirs
    labels = _labels(mat, beside)
    with _opened(mat) as file:
        count = _check(file, mat, labels)
    parts = _parts(beside, count)
    # a MATLAB 5 file can't be read in pieces: it is read here, and each scene's label travels with its item
    ready = _matlab40(labels.file, count) if labels.key == "labels40" and not _is_hdf5(labels.file) else None
    items = [
        Item(f"{mat.name}[{i}]", (i, None if ready is None else ready[:, :, i]), None, parts.get(i, -1))
        for i in range(count)
    ]
    used = sorted({mat, *(path for path in (labels.file, labels.mapping) if path)} | set(_beside(beside, SPLITS)))
    plan = Plan(
        task=TASK.name,
        version=TASK.version,
        columns={
            "rgb": Column((3, *shape), "uint8", scale="channel", axis=0),
            "depth": Column((1, *shape), "float32", scale=None if released else "channel", axis=0),
            "label": Column(shape, "uint8"),
        },
        items=items,
        read=ReadScene(mat, labels, shape, released),
        settings={"size": list(shape), **({"released": True} if released else {})},
        order=ORDER if theirs else "as in the labelled set",
        card={
            "title": TASK.title,
            "classes": list(CLASSES),
            "ignored_class": 0,
            "labels": labels.about,
            **({"released": "depths scaled scene by scene"} if released else {}),
            "sources": {"publisher": "NYU Depth V2, labelled set", "sha256": {p.name: sha256(p) for p in used}},
        },
    )
    return build(folder, plan, screen, workers, max_broken)


@dataclass(frozen=True)
class Labels:
    """Where the 40 classes come from: a key of an HDF5 or MATLAB 5 file, perhaps through a mapping."""

    file: Path
    key: str
    mapping: Path | None
    about: str


@dataclass(frozen=True)
class ReadScene:
    """From a position in the .mat to `rgb` [3, H, W] and `label` [H, W] uint8, `depth` [1, H, W] float32 in metres.

    Attributes:
        released: depths from 0 to 1, the scene's nearest and farthest; a constant scene's are 0.
    """

    mat: Path
    labels: Labels
    size: tuple[int, int]
    released: bool = False

    def __call__(self, source: tuple[int, np.ndarray | None]) -> dict[str, Any]:
        position, label = source
        with _opened(self.mat) as file:
            rgb = np.asarray(file["images"][position]).transpose(2, 1, 0)
            depth = np.asarray(file["depths"][position], dtype=np.float32).T
        label = self.label(position) if label is None else label
        if label.max(initial=0) >= len(CLASSES):
            raise DataError(f"scene {position}: label {int(label.max())} is not one of the 40 classes (0 = unlabelled)")
        small = resize(_bytes(rgb, f"scene {position}: colours"), self.size)
        far = resize(np.ascontiguousarray(depth), self.size)[None]
        return {
            "rgb": np.ascontiguousarray(small.transpose(2, 0, 1)),
            "depth": min_max(far)[0] if self.released else far,
            "label": resize(_bytes(label, f"scene {position}: labels"), self.size, nearest=True),
        }

    def label(self, position: int) -> np.ndarray:
        """The 40 classes of a scene, [480, 640]."""
        with _opened(self.labels.file) as file:
            fine = np.asarray(file[self.labels.key][position]).T
        if self.labels.mapping is None:
            return fine
        table = _mapping(self.labels.mapping)
        if fine.max(initial=0) >= len(table):
            raise DataError(f"scene {position}: fine class {int(fine.max())} is not in {self.labels.mapping.name}")
        mapped: np.ndarray = table[fine]
        return mapped


def _parse_size(size: str) -> tuple[int, int]:
    height, _, width = str(size).partition("x")
    if (
        not (height.isdigit() and width.isdigit())
        or int(height) % 32
        or int(width) % 32
        or not int(height) * int(width)
    ):
        raise ConfigError(f"--size {size!r}: HEIGHTxWIDTH, multiples of 32, for example 480x640")
    return int(height), int(width)


def _bytes(values: np.ndarray, what: str) -> np.ndarray:
    """Numbers of any type as bytes, where nothing is lost."""
    found = np.ascontiguousarray(values)
    if found.dtype != np.uint8:
        with np.errstate(invalid="ignore"):
            narrow = found.astype(np.uint8)
        if not np.array_equal(narrow, found):
            raise DataError(f"{what} are {found.dtype}, and not all of them whole numbers from 0 to 255")
        return narrow
    return found


def _find(source: Path, screen: Watcher) -> tuple[Path, list[Path]]:
    """The .mat, and the folders in which files that go with it may lie."""
    if source.is_file() and not is_packed(source):
        return source, [source.parent]
    names = (PUBLISHED_NAME, RELEASED_NAME)
    found = [] if source.is_file() else sorted(path for name in names for path in source.rglob(name) if path.is_file())
    if not found:
        found = _packed(source, names)
    if len(found) > 1:
        raise DataError(f"{source}: {found[0]} and {found[1]} are below it; name the file that you mean")
    if not found:
        raise DataError(f"{source}: no {PUBLISHED_NAME} in it; fetch NYU Depth V2's labelled set")
    if not is_packed(found[0]):
        return found[0], [found[0].parent]
    folder = unpacked(found[0], (*names, LABELS, MAPPING, SPLITS))
    mat = next(folder / name for name in names if (folder / name).exists())
    screen.say(f"{TASK.name}: {found[0]} is unpacked in {folder}, which may be deleted afterwards")
    return mat, [folder, found[0].parent]


def _packed(source: Path, names: tuple[str, ...]) -> list[Path]:
    """Packed files that hold the .mat.

    Raises:
        DataError: one that holds several.
    """
    paths = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    found = {path: names_in(path, names) for path in paths if is_packed(path)}
    for path, held in found.items():
        if len(held) > 1:
            raise DataError(f"{path} holds {held[0]} and {held[1]}; unpack it, and name the file that you mean")
    return [path for path, held in found.items() if held]


def _beside(folders: Sequence[Path], name: str) -> list[Path]:
    """The file of that name that goes with the .mat, if there is one."""
    return [path for folder in folders if (path := folder / name).exists()][:1]


def _labels(mat: Path, folders: Sequence[Path]) -> Labels:
    """Where this set's 40 classes are."""
    with _opened(mat) as file:
        if "labels40" in file:
            return Labels(mat, "labels40", None, f"labels40 of {mat.name}")
    for path in _beside(folders, LABELS):
        return Labels(path, "labels40", None, LABELS)
    for path in _beside(folders, MAPPING):
        return Labels(mat, "labels", path, f"labels of {mat.name} through {MAPPING}")
    raise DataError(
        f"{mat}: has no key 'labels40' (the publisher's file has 894 fine classes); put {LABELS} or {MAPPING} beside it"
    )


def _check(file: Any, mat: Path, labels: Labels) -> int:
    """The number of scenes, after a look at keys and shapes."""
    for key in ("images", "depths", *(("labels",) if labels.key == "labels" else ())):
        if key not in file:
            raise DataError(f"{mat}: no key {key!r} (found: {', '.join(sorted(file)[:8])}); fetch the labelled set")
    count, channels, *rest = file["images"].shape
    if channels != 3 or tuple(rest) != (SIZE[1], SIZE[0]) or tuple(file["depths"].shape) != (count, *rest):
        raise DataError(
            f"{mat}: images {list(file['images'].shape)} and depths {list(file['depths'].shape)}, where "
            "[N, 3, 640, 480] and [N, 640, 480] are expected"
        )
    return int(count)


def _parts(folders: Sequence[Path], count: int) -> dict[int, int]:
    """Publisher's part of each scene, from splits.mat (MATLAB counts from 1)."""
    for path in _beside(folders, SPLITS):
        found = _matlab(path)
        try:
            train, test = (np.asarray(found[key]).ravel().astype(int) - 1 for key in ("trainNdxs", "testNdxs"))
        except KeyError:
            raise DataError(f"{path}: no trainNdxs and testNdxs in it; remove it or fetch it again") from None
        return {**{int(i): 0 for i in train if i < count}, **{int(i): 2 for i in test if i < count}}
    return {}


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:  # MATLAB puts a header of 512 bytes before the HDF5 signature
        return b"\x89HDF" in file.read(520)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError:
        raise ConfigError("reading .mat files needs h5py: pip install 'mstdistill[prepare]'") from None
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 .mat ({str(error)[:100]}); fetch it again") from None


_tables: dict[Path, Mapping[str, np.ndarray]] = {}


def _matlab(path: Path) -> Mapping[str, np.ndarray]:
    """A MATLAB 5 file's arrays, read once a process."""
    from scipy.io import loadmat

    if path not in _tables:
        try:
            _tables[path] = loadmat(path)
        except (OSError, ValueError, NotImplementedError, TypeError) as error:
            raise DataError(f"{path}: not a readable MATLAB file ({str(error)[:100]})") from None
    return _tables[path]


def _matlab40(path: Path, count: int) -> np.ndarray:
    """labels40 [480, 640, N] of a MATLAB 5 file."""
    found = _matlab(path).get("labels40")
    if found is None or found.shape != (*SIZE, count):
        shape = None if found is None else list(found.shape)
        raise DataError(f"{path}: labels40 is {shape}, where {[*SIZE, count]} is expected")
    return found


def _mapping(path: Path) -> np.ndarray:
    """Table from fine classes 0..894 to 0..40."""
    found = _matlab(path)
    if "mapClass" not in found:
        raise DataError(f"{path}: no key 'mapClass'; fetch classMapping40.mat again")
    return np.concatenate([[0], np.asarray(found["mapClass"]).ravel()]).astype(np.uint8)


TASK = Task(
    name="nyu-depth-v2",
    title="indoor scenes, a class for each pixel (paper); needs NYU Depth V2's labelled set",
    modalities={"rgb": (3, None, None), "depth": (1, None, None)},
    forms={"rgb": Form("image"), "depth": Form("image")},
    num_classes=41,
    class_names=CLASSES,
    ignore_index=0,
    prepare=prepare,
    options={
        "source": Option(
            "folder with nyu_depth_v2_labeled.mat (and labels40.mat or classMapping40.mat, splits.mat) or with the "
            "authors' NYU-Depth-V2_data.mat, packed or not; or the file itself",
            example="downloads/nyu",
        ),
        "size": Option("HEIGHTxWIDTH, both multiples of 32", default="480x640"),
        "workers": WORKERS,
        "max_broken": max_broken("scenes"),
        "released": released_option("depths scaled scene by scene"),
    },
)
