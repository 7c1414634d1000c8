"""The paper's protocol: its permutations, index files, and data whose rows stand in another order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mstdistill import config
from mstdistill.config import DataSettings
from mstdistill.data.prepared.build import build
from mstdistill.data.prepared.cut import protocol_rows, released_order
from mstdistill.data.prepared.indices import read_permutation
from mstdistill.data.prepared.plan import Column, Item, Plan
from mstdistill.data.prepared.store import read_card, write
from mstdistill.data.prepared.views import make_view, open_views
from mstdistill.data.sources import crisismmd, ravdess
from mstdistill.data.sources.own import open_own
from mstdistill.data.sources.published import open_splits
from mstdistill.data.sources.registry import find_task
from mstdistill.data.task import SPLITS
from mstdistill.engine.progress import Screen
from mstdistill.errors import ConfigError, DataError

QUIET = Screen(quiet=True)


# numpy.random.seed(19980427), then 20 draws of numpy.random.permutation(n)
@pytest.mark.parametrize(
    ("count", "group", "first"),
    [
        (1440, 0, [1081, 1197, 716, 753, 873, 952, 900, 1214, 667, 204]),
        (1440, 1, [853, 812, 440, 616, 756, 82, 694, 330, 195, 1004]),
        (1440, 19, [77, 214, 1419, 1059, 624, 171, 821, 238, 1058, 1391]),
        (23, 0, [6, 1, 2, 17, 15, 21, 14, 8, 11, 3]),
        (23, 1, [0, 7, 1, 9, 22, 5, 12, 10, 15, 13]),
    ],
)
def test_groups_are_the_papers(count: int, group: int, first: list[int]) -> None:
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    order = released_order(count, group)
    assert order[:10].tolist() == first
    assert sorted(order.tolist()) == list(range(count))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    rows = protocol_rows(count, group, None)
    assert [len(rows[name]) for name in ("train", "validation", "test")] == [
        count * 6 // 10, count * 8 // 10 - count * 6 // 10, count - count * 8 // 10,
    ]  # fmt: skip
    assert np.array_equal(np.concatenate(list(rows.values())), order)


def indices(path: Path, *columns: list[object], names: tuple[str, ...] = ()) -> Path:
    """An index file of the authors' form; its first column has no name."""
    head = ["", *(names or tuple(f"group_{i}" for i in range(len(columns))))]
    lines = [",".join(map(str, row)) for row in zip(range(len(columns[0])), *columns, strict=True)]
    path.write_text("\n".join([",".join(head), *lines]) + "\n")
    return path


def test_an_index_file_is_read_by_group(tmp_path: Path) -> None:
    orders = [released_order(12, 7).tolist(), released_order(12, 3).tolist()]
    path = indices(tmp_path / "RAVDESS_indices.csv", *orders)
    for group, order in enumerate(orders):
        assert read_permutation(path, group, 12).tolist() == order


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("group_0,group_1\n0,1\n1,0\n2,2\n", r"no column 'group_2' \(found: group_0 to group_1\)"),
        ("a,b\n1,2\n", r"no column 'group_2' \(found: a, b\)"),
        ("", r"no column 'group_2' \(found: nothing\)"),
        ("group_2\n0\n1\n", "group_2 orders 2 rows, the data have 3"),
        ("group_2\n0\n1\n2\n3\n", "group_2 orders 4 rows, the data have 3"),
        ("group_2\n0\n2\n0\n", "line 4: group_2 is no permutation: row 0 stands in line 2 too"),
        ("group_2\n0\n1\n3\n", "line 4: group_2 has '3', which is no row from 0 to 2"),
        ("group_2\n0\n-1\n2\n", "line 3: group_2 has '-1'"),
        ("group_2\n0\n1.5\n2\n", "line 3: group_2 has '1.5'"),
        ("x,group_2\n0,0\n1\n2,2\n", "line 3: group_2 has ''"),
        (b"\xff\xfe\x00group_2\n", r"can't be read .*csv file"),
    ],
)
def test_index_files_that_dont_fit(content: str | bytes, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "i.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=wanted) as refusal:
        read_permutation(path, 2, 3)
    assert "i.csv" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    with pytest.raises(DataError, match="can't be read"):
        read_permutation(tmp_path / "none.csv", 2, 3)


def _read(i: int) -> dict[str, np.ndarray]:
    return {"image": np.full(2048, i, np.float32), "text": np.zeros(768, np.float32)}


def prepared(folder: Path, count: int = 10) -> Path:
    columns = {"image": Column((2048,), "float32"), "text": Column((768,), "float32")}
    items = [Item(f"tweet {i}", i, i % 8) for i in range(count)]
    return build(folder, Plan("crisismmd-v2", 2, columns, items, _read, {}, order="as made"), QUIET, 1)


def rows_of(folder: Path, **how: object) -> dict[str, list[int]]:
    splits = open_splits(find_task("crisismmd-v2"), str(folder), **how)  # type: ignore[arg-type]
    return {
        name: [int(v) for v in split.fetch(np.arange(len(split)), ["image"])[0]["image"][:, 0]]
        for name, split in splits.items()
    }


def test_prepared_data_are_cut_by_the_protocol_or_a_file(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "data")
    assert rows_of(folder) == {"train": [0, 8, 2, 1, 4, 3], "validation": [5, 7], "test": [6, 9]}
    assert rows_of(folder, group=1) == {"train": [3, 2, 6, 1, 7, 0], "validation": [4, 8], "test": [9, 5]}
    path = indices(tmp_path / "CMMD-V2_indices.csv", list(range(10)), list(range(9, -1, -1)))
    wanted = {"train": [9, 8, 7, 6, 5, 4], "validation": [3, 2], "test": [1, 0]}
    assert rows_of(folder, group=1, indices=str(path)) == wanted
    assert sum(map(len, rows_of(folder, indices=str(path), limit=5).values())) == 5


def test_older_data_are_never_cut_into_other_groups(tmp_path: Path) -> None:
    """Refused with the mend, and the mend works without reading anything again."""
    folder = prepared(tmp_path / "data")
    card = read_card(folder)
    assert card.pop("order") == "as made"
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match="same mstdistill prepare crisismmd-v2 again"):
        rows_of(folder)
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "all").iterdir()}
    prepared(folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / "all").iterdir()} == stamps
    assert rows_of(folder)["test"] == [6, 9]


def test_the_setting(tmp_path: Path) -> None:
    plain = config.load("ravdess")
    assert "indices" not in plain.binding()["data"]  # runs begun before there was such a setting go on
    recipe = config.load("ravdess", ["data.indices=i.csv"])
    assert recipe.binding()["data"]["indices"] == "i.csv"
    assert config.load("ravdess", ["data.indices=i.csv", "data.group=3"]).data.group == 3
    with pytest.raises(ConfigError, match="give one"):
        config.load("ravdess", ["data.indices=i.csv", "data.split=publisher"])
    row = {"image": np.zeros((1, 2048)), "text": np.zeros((1, 768)), "label": np.zeros(1, int)}
    write(tmp_path / "cut", dict.fromkeys(SPLITS, row), {"task": "crisismmd-v2"})
    with pytest.raises(ConfigError, match="splits of its own"):
        rows_of(tmp_path / "cut", indices="i.csv")


def test_own_data_take_an_index_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setenv("MSTDISTILL_HOME", str(tmp_path / "home"))
    columns = {"age": list(range(10)), "label": [i % 2 for i in range(10)]}
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "own"))
    data = open_own(DataSettings(dir=str(tmp_path / "own"), columns={"age": "age"}))
    views = [make_view(data, "age", None, "student")]
    path = indices(tmp_path / "i.csv", list(range(9, -1, -1)))
    found = open_views(data, views, group=0, limit=None, split="protocol", screen=QUIET, indices=str(path))
    assert found["train"].fetch(np.arange(6), ["age"])[0]["age"][:, 0].tolist() == [9, 8, 7, 6, 5, 4]
    data.parted = True
    with pytest.raises(ConfigError, match="splits of their own"):
        open_views(data, views, group=0, limit=None, split="protocol", screen=QUIET, indices=str(path))


def test_rows_stand_in_the_released_order(tmp_path: Path) -> None:
    clips = ["01-02-01-01-01-02", "01-05-01-01-01-01", "01-03-01-01-01-01", "01-01-01-01-01-02"]
    for clip in clips:
        for kind, ending in (("01", "mp4"), ("03", "wav")):
            (tmp_path / f"{kind}-{clip}.{ending}").touch()
    items, _ = ravdess._pairs(tmp_path)
    assert [(item.key[-2:], item.label) for item in items] == [("01", 2), ("01", 4), ("02", 0), ("02", 1)]
    tables = {part: tmp_path / f"{part}.tsv" for part in crisismmd.PARTS}
    for part, ids in {"train": "abc", "dev": "cd", "test": "de"}.items():
        rows = [f"{name}\t{part}\tpicture\tvehicle_damage" for name in ids]
        tables[part].write_text("\n".join(["\t".join(crisismmd.COLUMNS), *rows]))
    tweets, repeated = crisismmd._tweets(tables)
    assert [(item.key, item.part) for item in tweets] == [("c", 1), ("d", 1), ("e", 2), ("a", 0), ("b", 0)]
    assert repeated == 2
