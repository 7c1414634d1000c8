"""CrisisMMD: emoji that its tables hold in two pieces, contractions before links, the authors' features."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch

from mstdistill.data.decode.emoji import rejoin_emoji
from mstdistill.data.decode.tweet import normalise_tweet
from mstdistill.data.prepared.store import PreparedSplit, read_card

from . import publishers
from .conftest import Command, refused

emoji = pytest.importorskip("emoji")
ASTRAL = [e for e in emoji.EMOJI_DATA if any("\U0001f000" <= c <= "\U0001ffff" for c in e)]


def broken(text: str, encoding: str = "utf-8") -> str:
    """As the tables have it: an escape cut after four digits; the letter's bytes read as another encoding."""
    pieces = []
    for character in text:
        if "\U0001f000" <= character <= "\U0001ffff":
            digits = f"{ord(character):X}"
            pieces.append(chr(int(digits[:4], 16)).encode().decode(encoding) + digits[4])
        else:
            pieces.append(character)
    return "".join(pieces)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "sloppy-windows-1252"])
def test_every_emoji_comes_back(encoding: str) -> None:
    """Alone, between words, at the end of one, in rows, after digits."""
    pytest.importorskip("ftfy")  # it brings Windows-1252 without gaps
    assert len(ASTRAL) > 3000
    for i, one in enumerate(ASTRAL):
        other = ASTRAL[-i]
        for text in (one, f"pray {one} now", f"pray{one}", f"{one}{other}{one}!", f"2{one} 2"):
            assert rejoin_emoji(broken(text, encoding)) == text


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "sloppy-windows-1252"])
def test_every_emoji_is_named(encoding: str) -> None:
    """Through the repair of mojibake, which knows some letters only, and past the quotes that it straightens."""
    for one in sorted({c for e in ASTRAL for c in e if "\U0001f000" <= c <= "\U0001ffff"}):
        text = f"they’re safe {one}{one}, café {one}"
        assert normalise_tweet(broken(text, encoding)) == normalise_tweet(text)


@pytest.mark.parametrize(
    "text",
    [
        "μῆνιν ἄειδε θεὰ Πηληϊάδεω Ἀχιλῆος οὐλομένην, ἣ μυρί’ Ἀχαιοῖς ἄλγε’ ἔθηκε", "ὤ F ὠ Ἀ ὦ", "τῷ1 τοὤF", "ὤFather",
        "ὤF5", "ὤF_", "ὤFὤ", "ὤFὤFω", "ἐ5 ἀ0", "á½¤", "á½¤G", "\U0001f64fF \U0001f64f",
    ],
)  # fmt: skip
def test_what_is_no_emoji_stays(text: str) -> None:
    assert rejoin_emoji(text) == text


def test_escapes_of_the_tables() -> None:
    for text, named in ((r"\u1f64F", ":folded_hands:"), (r"\u1f64f", ":folded_hands:"), ("἟A἟8", ":United_States:"),
                        ("ὄDἿD", ":thumbs_up_medium_skin_tone:"),
                        ("ὄ9https://t.co/a", ":backhand_index_pointing_right:"),
                        ("ὄ9t.co/a", ":backhand_index_pointing_right:"), ("Ὠ2Ὠ2", "Ὠ2 Ὠ2")):  # fmt: skip
        wanted = named if text != "Ὠ2Ὠ2" else normalise_tweet("\U0001f682\U0001f682")
        assert normalise_tweet(f"Help {text} https://t.co/x") == f"Help {wanted}"


@pytest.mark.parametrize("link", ["https://t.co/x", "http://t.co/x1 https://t.co/y", "t.co/abc "])
@pytest.mark.parametrize(
    "words", ["I don't", "We can’t", "it ain't", "I'm", "they're", "it's", "we'll", "he'd", "I've", "I cannot",
              "at 5 p.m", "at 5 a.m.", "no words"],
)  # fmt: skip
def test_before_the_closing_link(words: str, link: str, tmp_path: Path) -> None:
    """As BERTweet has it, which sees the link."""
    from transformers import BertweetTokenizer

    (tmp_path / "vocab.txt").write_text("<s> 1\n")
    (tmp_path / "bpe.codes").write_text("#version: 0.2\n")
    reference = BertweetTokenizer(str(tmp_path / "vocab.txt"), str(tmp_path / "bpe.codes"), normalization=True)
    wanted = reference.normalizeTweet(f"{words} http://t.co/x").removesuffix(" HTTPURL")
    assert normalise_tweet(f"{words} {link}") == wanted
    assert normalise_tweet(words) == reference.normalizeTweet(words)


def test_rows_stand_as_dev_test_train(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mstdistill.data.sources import crisismmd

    def encode(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "image": np.full(2048, len(row["text"])), "text": np.zeros(768)} for row in rows]

    monkeypatch.setattr(crisismmd, "Encode", lambda *names: encode)
    raw = publishers.crisismmd(tmp_path / "raw", tweets=16)
    prepare(command, raw, tmp_path / "out")
    card = read_card(tmp_path / "out")
    assert card["order"] == "dev, test, train"
    rows = PreparedSplit(tmp_path / "out", "all", card)
    _, labels = rows.fetch(np.arange(len(rows)), ["text"])
    assert labels.tolist() == [i % 8 for part in ((3,), (4,), (0, 1, 2)) for i in range(16) if i % 5 in part]


def features(path: Path, change: Callable[..., Any] = lambda *arrays: arrays) -> Path:
    """`CMMD_data.pth` with nine rows."""
    g = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    image, text = g.normal(0, 5, (9, 2048)).astype(np.float32), g.normal(0, 1, (9, 768)).astype(np.float32)
    torch.save(change(image, text, np.arange(9)[::-1] % 8), path)
    return path


def prepare(command: Command, source: Path, out: Path) -> str:
    words = ("prepare", "crisismmd-v2", "--source", source, "--out", out, "--workers", 1)
    code, shown, err = command(*words)
    assert (code, err) == (0, ""), err
    return shown


def test_the_authors_features(command: Command, tmp_path: Path) -> None:
    path = features(tmp_path / "raw" / "CMMD-V2" / "CMMD_data.pth")
    for source in (path, path.parent, path.parent.parent):
        prepare(command, source, tmp_path / "out")
    card = read_card(tmp_path / "out")
    assert (card["order"], card["settings"]) == ("released", {"released": True})
    split = PreparedSplit(tmp_path / "out", "all", card)
    inputs, label = split.fetch(np.arange(9), ["image", "text"])
    g = np.random.default_rng(0)
    assert np.array_equal(inputs["image"], g.normal(0, 5, (9, 2048)).astype(np.float32))
    assert np.array_equal(inputs["text"], g.normal(0, 1, (9, 768)).astype(np.float32))
    assert label.tolist() == [0, 7, 6, 5, 4, 3, 2, 1, 0]


def test_one_thing_at_a_time(command: Command, tmp_path: Path) -> None:
    words = ("prepare", "crisismmd-v2", "--out", tmp_path / "out", "--source")
    path = features(tmp_path / "raw" / "CMMD_data.pth")
    refused(command(*words, path, "--text-encoder", "x/y"), "--text-encoder", "encoded already")
    publishers.crisismmd(tmp_path / "raw", tweets=5)
    refused(command(*words, tmp_path / "raw"), "task_humanitarian", str(path))
    (path.parent / "b").mkdir()
    path.with_name("b").joinpath("CMMD_data.pth").touch()
    refused(command(*words, tmp_path / "raw"), "name the file that you mean")


def holed(image: np.ndarray, text: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, ...]:
    text[3, 5] = np.nan
    return image, text, label


class Evil:
    def __reduce__(self) -> Any:
        return print, ("ran",)


MISFITS: list[tuple[Callable[..., Any], str]] = [
    (lambda i, t, y: [i, t, y], "a list of 3"),
    (lambda i, t, y: (i, t), "a tuple of 2"),
    (lambda i, t, y: i, "a ndarray"),
    (lambda i, t, y: {"image": i}, "a dict of 1"),
    (lambda i, t, y: (t, i, y), "images are [9, 768], where [N, 2048] belong"),
    (lambda i, t, y: (i, t[:8], y), "texts are [8, 768], where [9, 768] belong"),
    (lambda i, t, y: (i, t, y[:, None]), "labels are [9, 1], where [9] belong"),
    (lambda i, t, y: (i, t, y + 1), "row 1 has the label 8, where classes are 0 to 7"),
    (lambda i, t, y: (i, t, y - 1), "row 0 has the label -1"),
    (lambda i, t, y: (i, t, y + 0.5), "row 0 has the label 0.5"),
    (holed, "row 3 of the texts has NaN or Inf"),
    (lambda i, t, y: (torch.tensor(i), t, y), "a Tensor"),
    (lambda i, t, y: (i, t, y.astype(object)), "numpy.dtypes.ObjectDType"),
    (lambda i, t, y: (i, t, PosixPath("x")), "pathlib"),
    (lambda i, t, y: (i, t, y, Evil()), "print"),
]


@pytest.mark.parametrize(("change", "wanted"), MISFITS)
def test_files_that_dont_fit(change: Callable[..., Any], wanted: str, command: Command, tmp_path: Path) -> None:
    path = features(tmp_path / "CMMD_data.pth", change)
    result = command("prepare", "crisismmd-v2", "--source", path, "--out", tmp_path / "out")
    refused(result, str(path), wanted)
    assert "ran" not in result[1].split()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04", pickle.dumps((np.zeros(2),) * 3, protocol=4)])
def test_files_that_are_damaged(
    content: bytes, command: Command, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "CMMD_data.pth").write_bytes(content)
    refused(command("prepare", "crisismmd-v2", "--source", tmp_path, "--out", tmp_path / "out"), "no torch file")
    assert not recwarn.list  # a library's own line beside the error
