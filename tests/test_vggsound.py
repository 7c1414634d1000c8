"""VGGSound: what is told apart below --source, how files and clips find each other, and what is left out, with why."""

from __future__ import annotations

import csv
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstdistill.data.decode.features import read_features
from mstdistill.data.prepared.store import PreparedSplit, read_card
from mstdistill.data.sources import vggsound, vggsound_files
from mstdistill.data.sources.published import open_splits
from mstdistill.data.sources.vggsound_files import identity
from mstdistill.errors import DataError

from . import publishers
from .conftest import Command, refused

CLIPS = 6
KINDS = ("people marching", "dog barking", "rain, heavy")


def names(clip: int) -> str:
    return f"v-Cl_p{clip:05d}"  # eleven characters, as YouTube's ids are


def audio(clip: int, rows: int = 10) -> np.ndarray:
    return np.arange(rows * 128, dtype=np.float32).reshape(rows, 128) + clip


def visual(clip: int) -> np.ndarray:
    maps = np.zeros((10, 7, 7, 512), dtype=np.float32)
    maps[:, 0, 0] = np.arange(512) / 512 + clip
    return maps


def save(path: Path, values: np.ndarray, *leftovers: str) -> None:
    """A .npy, a .pkl, or a .zip with a pickle in it beside what else there is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
        return
    content = pickle.dumps(values)
    if path.suffix == ".pkl":
        path.write_bytes(content)
        return
    with zipfile.ZipFile(path, "w") as archive:
        for name in leftovers:
            archive.writestr(name, b"Mac OS X")
        archive.writestr(f"{path.stem}.pkl", content)


def table(path: Path, rows: list[tuple[str, str, str]] | None = None) -> Path:
    """The benchmark's list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = ("train", "val", "test")
    rows = rows or [(KINDS[i % 3], names(i), parts[i // 2]) for i in range(CLIPS)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("category", "video_id", "onset", "offset", "split"))
        writer.writerows((kind, clip, 0, 10, part) for kind, clip, part in rows)
    return path


def avel(root: Path, name: str = "{}.npy", sound: Callable[[int], np.ndarray] = audio) -> Path:
    """The benchmark's layout; `name`: of a clip's files."""
    table(root / "vggsound-avel50k.csv")
    for i in range(CLIPS):
        save(root / "audio_features" / name.format(names(i)), sound(i))
        save(root / "video_features" / name.format(names(i)), visual(i))
    return root


def authors(root: Path, folder: str = "VGGS50K_features") -> Path:
    """The layout of the paper's authors, classes 140, 0 and 7."""
    lines = []
    for i in range(CLIPS):
        sample = f"v{names(i)}_{10 * i}_{10 * i + 10}_out"
        save(root / folder / "visual_features" / f"{sample}_vFeature.npy", visual(i))
        save(root / folder / "audio_features" / f"{sample}_aFeature.npy", audio(i))
        lines.append(f"{sample}&{(140, 0, 7)[i % 3]}")
    (root / "VGGS50k_metadata.txt").write_text("\n".join(lines) + "\n")
    return root


def prepared(tmp: Path, source: Path, **options: Any) -> dict[str, Any]:
    return read_card(vggsound.TASK.prepare(tmp / "out", source=source, workers=1, **options))  # type: ignore[misc]


def rows(tmp: Path) -> tuple[dict[str, np.ndarray], list[int]]:
    """All rows as they are stored."""
    split = PreparedSplit(tmp / "out", "all", read_card(tmp / "out"))
    columns = {
        name: split.columns[name].take(torch.arange(len(split))).numpy() for name in ("audio", "visual", "label")
    }
    return columns, columns["label"].tolist()


@pytest.mark.parametrize(("count", "why"), [(9, ""), (10, ""), (11, ""), (8, "[8, 128]"), (12, "[12, 128]")])
def test_audio_of_nine_to_eleven_rows(count: int, why: str, tmp_path: Path) -> None:
    source = avel(tmp_path / "raw", sound=lambda i: audio(i, count if i == 4 else 10))
    card = prepared(tmp_path, source, dtype="float32", max_broken=0.5)
    broken = json.loads((tmp_path / "out" / "broken.json").read_text())
    found, _ = rows(tmp_path)
    if why:
        ((key, said),) = broken
        assert key == names(4)
        assert why in said
        assert "[10, 128]" in said
        return
    assert broken == []
    wanted = audio(4, count)[[*range(min(count, 10)), *([-1] if count == 9 else [])]]
    assert np.array_equal(found["audio"][4].reshape(10, 128), wanted)
    assert card["splits"]["all"]["rows"] == CLIPS


LEFTOVERS = {
    "macOS": ("__MACOSX/._clip.pkl", ".DS_Store"),
    "within a folder": ("clip/.DS_Store", "__MACOSX/clip/._clip.pkl", "clip/"),
    "a note": ("readme.txt",),
    "Windows": ("Thumbs.db", "desktop.ini"),
}


@pytest.mark.parametrize("case", LEFTOVERS)
def test_archives_with_leftovers(case: str, tmp_path: Path) -> None:
    save(tmp_path / "clip.zip", audio(3), *LEFTOVERS[case])
    assert np.array_equal(read_features(tmp_path / "clip.zip"), audio(3))


def test_archives_with_two_arrays_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "clip.zip", audio(3), "other.pkl")
    with pytest.raises(DataError, match="2 files in the archive"):
        read_features(tmp_path / "clip.zip")
    with zipfile.ZipFile(tmp_path / "clip.zip", "w") as archive:
        archive.writestr("__MACOSX/._clip.pkl", io.BytesIO().getvalue())
    with pytest.raises(DataError, match="0 files in the archive"):
        read_features(tmp_path / "clip.zip")


@pytest.mark.parametrize(("name", "found"), [
    ("---g-f_I2yQ", ("---g-f_I2yQ", None)), ("---g-f_I2yQ_000001", ("---g-f_I2yQ", 1)),
    ("---g-f_I2yQ_1_11", ("---g-f_I2yQ", 1)), ("v---g-f_I2yQ_1_11_out", ("---g-f_I2yQ", 1)),
    ("v---g-f_I2yQ_1_11_out_aFeature", ("---g-f_I2yQ", 1)), ("vXw_1_22_33__30_40_out", ("Xw_1_22_33_", 30)),
    ("v12345678_1_30", ("v12345678_1", 30)), ("short", ("short", None)),
])  # fmt: skip
def test_ids_in_names(name: str, found: tuple[str, int | None]) -> None:
    assert identity(name) == found


@pytest.mark.parametrize("name", ["{}.npy", "{}.zip", "{}_000030.pkl", "v{}_30_40_out.npy", "v{}_30_40_out_feat.zip"])
def test_names_of_files(name: str, tmp_path: Path) -> None:
    card = prepared(tmp_path, avel(tmp_path / "raw", name))
    assert card["without_file"] == []
    found, labels = rows(tmp_path)
    assert labels == [0, 1, 2, 0, 1, 2]
    assert np.array_equal(found["audio"][5].reshape(10, 128), audio(5).astype(np.float16))


def test_another_start_is_another_clip(tmp_path: Path) -> None:
    source = avel(tmp_path / "raw", "{}_000030.npy")
    starts = ("_30", "", "_000031", "_30000", "_000030", "_3")
    table(source / "vggsound-avel50k.csv", [(KINDS[0], names(i) + starts[i], "") for i in range(CLIPS)])
    assert prepared(tmp_path, source)["without_file"] == [names(2) + "_000031", names(5) + "_3"]


def test_two_files_of_a_clip_are_refused(tmp_path: Path) -> None:
    source = avel(tmp_path / "raw")
    save(source / "more_audio" / f"{names(2)}.pkl", audio(9))
    with pytest.raises(DataError, match=r"has two files, .*keep one"):
        prepared(tmp_path, source)


# where features and labels lie, below the source: a folder's name and what is in it
FOLDERS: dict[str, dict[str, str]] = {
    "labels beside features": {"label": "label", "video_labels": "label", "video_features": "visual", "audio": "audio"},
    "labels after features": {"video": "visual", "video_z_labels": "label", "audio": "audio", "audio_zz": "label"},
    "archives' folders": {"audio/zip": "audio", "video/zip": "visual", "labels/zip": "label"},
    "names that say nothing": {"vggish": "audio", "vgg19": "visual", "classes": "label"},
    "names the wrong way round": {"video_sound": "audio", "audio_pictures": "visual"},
    "in parts": {"audio/1": "audio", "audio/2": "audio", "visual": "visual"},
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_are_told_by_what_lies_in_them(case: str, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    table(root / "vggsound-avel50k.csv")
    (root / "vggsound.csv").write_text("---g-f_I2yQ,1,people marching,test\n")
    for folder, kind in FOLDERS[case].items():
        for i in range(CLIPS):
            if kind == "audio" and folder[-1] in "12" and i % 2 != int(folder[-1]) - 1:
                continue
            values = {"audio": audio(i), "visual": visual(i), "label": np.eye(141)[:10] + i}[kind]
            save(root / folder / f"{names(i)}.zip", values)
            save(root / folder / "__MACOSX" / f"{names(i)}.zip", values)
            (root / folder / f"._{names(i)}.zip").write_bytes(b"Mac OS X")
    card = prepared(tmp_path, root)
    found, labels = rows(tmp_path)
    assert (card["classes"], labels) == ([*KINDS], [0, 1, 2, 0, 1, 2])
    for i in range(CLIPS):
        assert np.array_equal(found["audio"][i].reshape(10, 128), audio(i).astype(np.float16))
        assert np.array_equal(found["visual"][i].reshape(10, 7, 7, 512), visual(i).astype(np.float16))


def test_features_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    source = avel(tmp_path / "raw", sound=lambda i: np.zeros((10, 64)))
    save(source / "audio_labels" / f"{names(0)}.npy", np.zeros(10))
    with pytest.raises(DataError, match=r"6 of 6 instances can't be read.*audio.*\[10, 64\]"):
        prepared(tmp_path, source)


OWN_LIST = "---g-f_I2yQ,1,people marching,test\n---kkkkkkk1,20,dog barking,train\n"
# the list's name and content, and what is said of it
LISTS: dict[str, tuple[str, str, str]] = {
    "VGGSound's own": ("vggsound.csv", OWN_LIST, "VGGSound's own list"),
    "VGGSound's own by another name": ("a.csv", OWN_LIST, "--clips vggsound-avel50k.csv"),
    "no such column": ("a.csv", "category,name\nx,y\n", "no column 'video_id' (found: category, name)"),
    "an unknown part": ("a.csv", "category,video_id,split\nx,y,training\n", "line 2: split 'training'"),
    "a short line": ("a.csv", "category,video_id,split\nx\n", "line 2: no category or no video_id"),
    "not a text": ("a.csv", "category,video_id\n\udcff\n", "not a readable csv"),
    "too many classes": ("a.csv", "category,video_id\n" + "".join(f"{i},{i}\n" for i in range(142)), "142 categories"),
    "none of the files": ("a.csv", "category,video_id\nx,unknown\n", "none of the 1 clips of a.csv has a file"),
}  # fmt: skip


@pytest.mark.parametrize("given", [False, True], ids=["below the source", "given"])
@pytest.mark.parametrize("case", LISTS)
def test_other_lists_are_refused(case: str, given: bool, tmp_path: Path, command: Command) -> None:
    name, content, said = LISTS[case]
    source = avel(tmp_path / "raw")
    (source / "vggsound-avel50k.csv").unlink()
    path = (tmp_path if given else source) / name
    path.write_bytes(content.encode(errors="surrogateescape"))
    words = ["--clips", path] if given else []
    refused(command("prepare", "vggsound-50k", "--source", source, "--out", tmp_path / "out", *words), said)


def test_sources_that_hold_nothing(tmp_path: Path, command: Command) -> None:
    source = avel(tmp_path / "raw")
    words = ("prepare", "vggsound-50k", "--out", tmp_path / "out", "--source")
    refused(command(*words, source / "vggsound-avel50k.csv"), "is a file; name the folder")
    refused(command(*words, source / "audio_features"), "0 csv files")
    for path in (source / "video_features").iterdir():
        path.unlink()
    refused(command(*words, source), "features of audio alone")


@pytest.mark.parametrize("where", [".", "..", "VGGS50K_features"])
def test_the_papers_authors_layout(where: str, tmp_path: Path) -> None:
    raw = authors(tmp_path / "all" / "raw")
    if where == ".":
        authors(raw, "VGGS50K_features_normed")  # both: the one that isn't scaled yet
    (raw / "VGGS50K_features" / "audio_features" / f"v{names(3)}_30_40_out_aFeature.npy").unlink()
    source = raw.parent if where == ".." else raw / where
    card = prepared(tmp_path, source)
    assert card["without_file"] == [f"v{names(3)}_30_40_out"]
    assert card["settings"]["from"] == "features"
    assert "scale" in card["modalities"]["visual"]
    assert "classes" not in card
    assert rows(tmp_path)[1] == [140, 0, 7, 0, 7]
    assert list(card["sources"]["sha256"]) == ["VGGS50k_metadata.txt"]


def test_scaled_features_are_not_scaled_again(tmp_path: Path) -> None:
    card = prepared(tmp_path, authors(tmp_path / "raw", "VGGS50K_features_normed"), dtype="float32")
    assert card["settings"]["from"] == "scaled features"
    assert not any("scale" in facts for facts in card["modalities"].values())
    splits = open_splits(vggsound.TASK, str(tmp_path / "out"))
    largest = max(float(split.fetch(np.arange(len(split)), ["audio"])[0]["audio"].max()) for split in splits.values())
    assert largest == 1279 + CLIPS - 1


def test_the_list_names_the_authors_classes(tmp_path: Path, command: Command) -> None:
    raw = authors(tmp_path / "raw")
    table(raw / "vggsound-avel50k.csv")
    words = ("prepare", "vggsound-50k", "--source", raw, "--workers", 1, "--out")
    assert command(*words, tmp_path / "out")[0] == 0
    card = read_card(tmp_path / "out")
    assert [card["classes"][i] for i in (140, 0, 7, 1)] == [*KINDS, "1"]
    sizes = {name: len(part) for name, part in
             open_splits(vggsound.TASK, str(tmp_path / "out"), split="publisher").items()}  # fmt: skip
    assert sizes == {"train": 2, "validation": 2, "test": 2}
    assert "note" not in card
    code, shown, _ = command("check", tmp_path / "out")
    assert code in (0, 2)  # miniatures have classes of an instance or two
    assert all(kind in shown for kind in KINDS)
    table(raw / "vggsound-avel50k.csv", [(KINDS[0], names(0), "train")])
    assert command(*words, tmp_path / "few")[0] == 0
    card = read_card(tmp_path / "few")
    assert (len(card["classes"]), card["classes"][140], card["classes"][7]) == (141, KINDS[0], "7")
    assert card["note"].startswith("5 samples aren't in vggsound-avel50k.csv")
    table(raw / "vggsound-avel50k.csv", [("one kind", names(i), "train") for i in range(CLIPS)])
    code, shown, _ = command(*words, tmp_path / "other")
    assert code == 0
    assert "classes have no names" in shown
    assert "classes" not in read_card(tmp_path / "other")


METADATA = {
    "another separator": ("{0}_0_10_out,3", "line 2", "is no <sample>&<class 0 to 140>"),
    "a class too many": ("{0}_0_10_out&141", "line 2", "is no <sample>&<class 0 to 140>"),
    "a word for a class": ("{0}_0_10_out&dog", "line 2", "is no <sample>&<class 0 to 140>"),
    "a path": ("../{0}&3", "line 2", "is no <sample>&<class 0 to 140>"),
    "two classes": ("first&1", "line 2", "first is of class 0 and of class 1"),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    line, *said = METADATA[case]
    raw = authors(tmp_path / "raw")
    (raw / "VGGS50k_metadata.txt").write_text("first&0\n" + line.format(names(0)))
    with pytest.raises(DataError) as error:
        prepared(tmp_path, raw)
    assert all(words in str(error.value) for words in said)


def test_authors_files_that_are_missing(tmp_path: Path) -> None:
    raw = authors(tmp_path / "raw")
    (raw / "VGGS50k_metadata.txt").write_text("first&0\n")
    with pytest.raises(DataError, match="none of the 1 samples"):
        prepared(tmp_path, raw)
    (raw / "VGGS50k_metadata.txt").write_text("")
    with pytest.raises(DataError, match="no line in it"):
        prepared(tmp_path, raw)
    authors(tmp_path / "raw" / "again")
    with pytest.raises(DataError, match=r"2 files VGGS50k_metadata\.txt"):
        prepared(tmp_path, raw)
    (raw / "VGGS50k_metadata.txt").unlink()
    (raw / "again" / "VGGS50K_features" / "audio_features").rename(raw / "sounds")
    with pytest.raises(DataError, match="0 folders with visual_features/ and audio_features/"):
        prepared(tmp_path, raw / "again")


def test_clips_are_found_by_all_their_names(tmp_path: Path) -> None:
    source = publishers.vggsound_clips(tmp_path / "raw", clips=1)
    clip = next((source / "videos").iterdir())
    name, found = clip.stem, []
    for stem in (name, f"v{name[:11]}_0_10_out", name[:11]):
        clip = clip.rename(clip.with_stem(stem))
        found.append(vggsound_files.find(source, None))
    assert [(f.kind, [i.key for i in f.items], f.absent) for f in found] == [
        ("clips", [name], ["Gone0000000_000000"])
    ] * 3
    assert vggsound.TASK.version >= 2  # sound became the mean of its channels
