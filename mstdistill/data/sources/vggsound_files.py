"""What lies below VGGSound's --source: a list of clips, and their features or the clips themselves.

Two layouts are known. The AVEL benchmark's: `vggsound-avel50k.csv` (category, video_id, ..., split) with folders of a
feature file a clip and modality, or with VGGSound's clips. The paper's authors': `VGGS50k_metadata.txt` (a line a clip:
`<sample>&<class>`) with `VGGS50K_features/visual_features/<sample>_vFeature.npy` and
`audio_features/<sample>_aFeature.npy`, or `VGGS50K_features_normed/`, whose values are scaled already.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import DataError
from ..decode.features import read_features
from ..prepared.plan import Item

CLASSES = 141
LIST, METADATA = "vggsound-avel50k.csv", "VGGS50k_metadata.txt"
FEATURE_SUFFIXES = (".zip", ".npy", ".npz", ".pkl", ".h5")
CLIP_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")
PARTS = {"": -1, "train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
_PROBED, _PROBED_BYTES = 3, 64_000_000  # files of a folder that are looked into, and how large ones

Tree = Mapping[Path, Sequence[str]]


@dataclass(frozen=True)
class Found:
    """What is to be read.

    Attributes:
        kind: "features", "scaled features" or "clips".
        items: of the listed clips that have files: (visual, audio), or (clip,).
        absent: the listed clips that have none.
        classes: names by class; empty where no list names them.
        lists: the files that said which clips there are.
        note: what a person should know.
    """

    kind: str
    items: list[Item]
    absent: list[str]
    classes: list[str]
    lists: list[Path]
    note: str = ""


def find(root: Path, clips: str | None) -> Found:
    """The listed clips and their files.

    Args:
        clips: the benchmark's list; None: the one below `root`.

    Raises:
        DataError: no list or another one, features of one modality alone, two files for a clip, or no file at all.
    """
    if not root.is_dir():
        raise DataError(f"--source {root} is a file; name the folder with the list and the features or clips")
    tree = _tree(root)
    metadata = [folder / name for folder, names in tree.items() for name in names if name.lower() == METADATA.lower()]
    if not metadata and (root.parent / METADATA).is_file() and "features" in root.name.lower():
        metadata = [root.parent / METADATA]
    if len(metadata) > 1:
        raise DataError(f"{root}: {len(metadata)} files {METADATA} below it; name the folder of one as --source")
    if metadata:
        return _authors(root, tree, metadata[0], clips)
    table = _find_list(root, tree, clips)
    rows = _read_list(table)
    classes = [*dict.fromkeys(category for category, _, _ in rows)]
    folders = _feature_folders(root, tree)
    if folders:
        kind, sides = "features", [_Index(tree, folders[side], FEATURE_SUFFIXES) for side in ("visual", "audio")]
    else:
        kind, sides = "clips", [_Index(tree, list(tree), CLIP_SUFFIXES)]
    numbers = {category: number for number, category in enumerate(classes)}
    items, absent = [], []
    for category, clip, part in rows:
        paths = [path for side in sides if (path := side.find(clip)) is not None]
        if len(paths) == len(sides):
            items.append(Item(clip, tuple(paths), numbers[category], part))
        else:
            absent.append(clip)
    if not items:
        raise DataError(f"none of the {len(rows):,} clips of {table.name} has a file; name files after video_id")
    return Found(kind, items, absent, classes, [table])


def _tree(root: Path) -> Tree:
    """The names of the files in each folder below `root`, without what macOS and others hide there."""
    tree: dict[Path, list[str]] = {}
    seen = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to what was walked already
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "__MACOSX")
        tree[Path(folder)] = sorted(name for name in names if not name.startswith("."))
    return tree


# The benchmark's list.


def _find_list(root: Path, tree: Tree, given: str | None) -> Path:
    if given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise DataError(f"--clips {given}: no such file")
        return path
    found = [folder / name for folder, names in tree.items() for name in names if name.lower().endswith(".csv")]
    lists = [path for path in found if {"category", "video_id"} <= set(_head(path))]
    # a single one that is no list is read to say what is wrong with it
    chosen = lists or [path for path in found if len(found) == 1 or _is_publishers(_head(path))]
    if len(chosen) != 1:
        raise DataError(f"{root}: {len(chosen or found)} csv files below it; name the list with --clips {LIST}")
    return chosen[0]


def _lines(table: Path) -> Iterator[list[str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.reader(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a readable csv ({error}); fetch it again") from None


def _head(table: Path) -> list[str]:
    return next(_lines(table), [])


def _is_publishers(row: Sequence[str]) -> bool:
    """Whether a csv starts as VGGSound's own does, which has no header: id, start, label, split."""
    return len(row) == 4 and len(row[0]) == 11 and row[1].isdigit() and row[3] in ("train", "test")


def _read_list(table: Path) -> list[tuple[str, str, int]]:
    """(category, clip, publisher's part) of each clip, in the list's order."""
    head = _head(table)
    if _is_publishers(head):
        raise DataError(
            f"{table}: VGGSound's own list of all its clips; the benchmark's is wanted, of {CLASSES} classes: "
            f"--clips {LIST}"
        )
    for column in ("category", "video_id"):
        if column not in head:
            raise DataError(f"{table}: no column {column!r} (found: {', '.join(head)})")
    rows: dict[str, tuple[str, str, int]] = {}
    for number, line in enumerate(_lines(table), 1):
        if number == 1 or not line:
            continue
        row = dict(zip(head, line, strict=False))
        category, clip, part = (row.get(name, "").strip() for name in ("category", "video_id", "split"))
        if not category or not clip or part.lower() not in PARTS:
            wrong = f"split {part!r}" if category and clip else "no category or no video_id"
            raise DataError(f"{table}: line {number}: {wrong}; fetch the list again")
        if clip in rows and rows[clip][0] != category:
            raise DataError(f"{table}: clip {clip} is listed twice, as {rows[clip][0]!r} and {category!r}")
        rows.setdefault(clip, (category, clip, PARTS[part.lower()]))
    classes = {category for category, _, _ in rows.values()}
    if len(classes) > CLASSES:
        raise DataError(f"{table}: {len(classes)} categories, where the benchmark has {CLASSES}: another list?")
    return [*rows.values()]


# Folders of features, and the files of a clip.


def _feature_folders(root: Path, tree: Tree) -> dict[str, list[Path]]:
    """The folders of visual and of audio features, told by the arrays in them; none where there are none."""
    found: dict[str, list[Path]] = {}
    unclear: dict[str, list[Path]] = {}
    for folder, names in tree.items():
        files = [folder / name for name in names if Path(name).suffix.lower() in FEATURE_SUFFIXES]
        if files:
            told = _told_by_arrays(files)
            side = told or _told_by_name(folder, root)
            if side:
                (found if told else unclear).setdefault(side, []).append(folder)
    # where no array can be read, or has a shape that is known, the name decides, and reading says what is wrong
    found = {**unclear, **found}
    if found and found.keys() != {"audio", "visual"}:
        raise DataError(
            f"{root}: extracted features of {', '.join(found)} alone; folders of both, named *audio* and *visual*, are "
            "wanted"
        )
    return found


def _told_by_arrays(files: Sequence[Path]) -> str | None:
    for path in dict.fromkeys(files[i * (len(files) - 1) // (_PROBED - 1)] for i in range(_PROBED)):
        try:
            shape = read_features(path).shape if path.stat().st_size <= _PROBED_BYTES else ()
        except (DataError, OSError):
            continue
        if shape[1:] in ((128,), (7, 7, 512)):
            return "audio" if len(shape) == 2 else "visual"
    return None


def _told_by_name(folder: Path, root: Path) -> str | None:
    for name in reversed([part.lower() for part in folder.relative_to(root).parts[-2:]]):
        if "label" in name:
            return None
        if "audio" in name:
            return "audio"
        if "visual" in name or "video" in name:
            return "visual"
    return None


_ID = "([A-Za-z0-9_-]{11})"
_AUTHORS_NAME = re.compile(rf"v{_ID}_([0-9]+)_[0-9]+_out")
_NAME = re.compile(rf"{_ID}(?:_([0-9]+))?(?:[_.]|$)")


def identity(name: str) -> tuple[str, int | None]:
    """YouTube's id, of eleven characters, and the start where the name has it: `ID`, `ID_START...`,
    `vID_START_END_out...`."""
    match = _AUTHORS_NAME.match(name) or _NAME.match(name)
    if match is None:
        return name[:11], None
    return match[1], None if match[2] is None else int(match[2])


class _Index:
    """Files by the clip that their names tell."""

    def __init__(self, tree: Tree, folders: Iterable[Path], suffixes: Sequence[str]) -> None:
        self.by_stem: dict[str, list[Path]] = {}
        self.by_id: dict[str, list[Path]] = {}
        for folder in folders:
            for path in (folder / name for name in tree[folder]):
                if path.suffix.lower() in suffixes:
                    self.by_stem.setdefault(path.stem, []).append(path)
                    self.by_id.setdefault(identity(path.stem)[0], []).append(path)

    def find(self, clip: str) -> Path | None:
        """A clip's one file.

        Raises:
            DataError: there are two.
        """
        start = identity(clip)[1]
        found = self.by_stem.get(clip) or [
            path for path in self.by_id.get(identity(clip)[0], ()) if _same_start(start, identity(path.stem)[1])
        ]
        if len(found) > 1:
            raise DataError(f"clip {clip} has two files, {found[0]} and {found[1]}; keep one of them below --source")
        return found[0] if found else None


def _same_start(a: int | None, b: int | None) -> bool:
    """Whether two starts may be the same: unknown, or in seconds or milliseconds."""
    return a is None or b is None or a == b or a == 1000 * b or 1000 * a == b


# The layout of the paper's authors.


def _authors(root: Path, tree: Tree, metadata: Path, clips: str | None) -> Found:
    rows = _read_metadata(metadata)
    folder = _authors_features(root, tree)
    sides = [(folder / f"{side}_features", f"_{side[0]}Feature.npy") for side in ("visual", "audio")]
    names = [set(tree[place]) for place, _ in sides]
    items, absent = [], []
    for sample, label in rows.items():
        files = [sample + ending for _, ending in sides]
        if all(file in there for file, there in zip(files, names, strict=True)):
            items.append(Item(sample, tuple(sides[i][0] / file for i, file in enumerate(files)), label))
        else:
            absent.append(sample)
    if not items:
        raise DataError(f"none of the {len(rows):,} samples of {metadata} has both files below {folder}")
    kind = "scaled features" if folder.name.lower().endswith("_normed") else "features"
    found = Found(kind, items, absent, [], [metadata])
    lists = [f / n for f, names in tree.items() for n in names if n.lower() == LIST]
    if clips is None and len(lists) != 1:
        return found
    return _named(found, _find_list(root, tree, clips) if clips else lists[0])


def _read_metadata(metadata: Path) -> dict[str, int]:
    """Class by sample, in the file's order."""
    rows: dict[str, int] = {}
    try:
        lines = metadata.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{metadata}: not a readable text ({error}); fetch it again") from None
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            continue
        match = re.fullmatch(r"([^&/\\]+)&([0-9]{1,3})", line)
        if match is None or int(match[2]) >= CLASSES:
            raise DataError(f"{metadata}: line {number}: {line[:60]!r} is no <sample>&<class 0 to {CLASSES - 1}>")
        sample, label = match[1], int(match[2])
        if rows.setdefault(sample, label) != label:
            raise DataError(f"{metadata}: line {number}: {sample} is of class {rows[sample]} and of class {label}")
    if not rows:
        raise DataError(f"{metadata}: no line in it; fetch it again")
    return rows


def _authors_features(root: Path, tree: Tree) -> Path:
    """The folder of both modalities; of several the one that isn't scaled yet."""
    both = [folder for folder in tree if {folder / "visual_features", folder / "audio_features"} <= tree.keys()]
    raw = [folder for folder in both if not folder.name.lower().endswith("_normed")]
    chosen = raw or both
    if len(chosen) != 1:
        raise DataError(
            f"{root}: {len(chosen)} folders with visual_features/ and audio_features/ in them; one is wanted, "
            f"VGGS50K_features or VGGS50K_features_normed, beside {METADATA}"
        )
    return chosen[0]


def _named(found: Found, table: Path) -> Found:
    """With the benchmark's names and parts, where its list has the same classes."""
    listed = {identity(clip)[0]: (category, part) for category, clip, part in _read_list(table)}
    names: dict[int, str] = {}
    items = []
    for item in found.items:
        assert item.label is not None
        category, part = listed.get(identity(item.key)[0], ("", -1))
        if category and names.setdefault(item.label, category) != category:
            note = (
                f"class {item.label} is both {names[item.label]!r} and {category!r} in {table}: classes have no names"
            )
            return replace(found, note=note)
        items.append(replace(item, part=part))
    if not names or len({*names.values()}) < len(names):
        return replace(found, note=f"the classes of {table} are others: classes have no names")
    classes = [names.get(number, str(number)) for number in range(max(item.label or 0 for item in items) + 1)]
    alone = sum(identity(item.key)[0] not in listed for item in items)
    note = f"{alone:,} samples aren't in {table.name}: they belong to no part of the publisher" if alone else ""
    return replace(found, items=items, classes=classes, lists=[*found.lists, table], note=note)
