"""Emoji that CrisisMMD's tables hold in two pieces, put together again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

_GREEK = "\u0370-\u03ff\u1f00-\u1fff"
_LINK = r"https?://|t\.co/"


def rejoin_emoji(text: str) -> str:
    """Emoji above U+FFFF as one character each.

    Whoever wrote the tables read such an emoji's escape after four of its five hex digits: U+1F64F became the letter
    U+1F64 and an "F", and at times the letter's UTF-8 bytes were then read as Latin-1 or Windows-1252. A letter and a
    digit that are no emoji together stay, as do those that stand in a word: after a Greek letter, or before a letter, a
    digit or "_" that begins no other such pair and no link.

    Raises:
        ImportError: emoji is not installed.
    """
    runs, pair, whole = _pairs()
    return runs.sub(lambda run: pair.sub(lambda found: whole[found[0]], run[0]), text)


@lru_cache(maxsize=1)
def _pairs() -> tuple[re.Pattern[str], re.Pattern[str], dict[str, str]]:
    """What finds pairs in a row, one pair, and what each stands for."""
    from emoji import EMOJI_DATA

    # flags and the like are several characters, none of which is an emoji alone
    characters = {character for sequence in EMOJI_DATA for character in sequence if character >= "\U0001f000"}
    whole: dict[str, str] = {}
    digits: dict[str, str] = {}
    for character in sorted(character for character in characters if character <= "\U0001ffff"):
        letter, digit = chr(ord(character) >> 4), f"{ord(character) & 15:X}"
        for form in _forms(letter):
            digits[form] = digits.get(form, "") + digit + digit.lower()
            whole[form + digit] = whole[form + digit.lower()] = character
    pair = "|".join(f"{re.escape(form)}[{found}]" for form, found in digits.items())
    return re.compile(rf"(?<![{_GREEK}])(?:{pair})+(?:(?!\w)|(?={_LINK}))"), re.compile(pair), whole


def _forms(letter: str) -> Iterator[str]:
    """A letter, and its UTF-8 bytes as Latin-1 and as Windows-1252 (whose gaps are read as Latin-1 in practice)."""
    yield letter
    as_latin = letter.encode().decode("latin-1")
    yield as_latin
    as_windows = "".join(_windows(character) for character in as_latin)
    if as_windows != as_latin:
        yield as_windows


def _windows(character: str) -> str:
    try:
        return character.encode("latin-1").decode("cp1252")
    except UnicodeDecodeError:
        return character
