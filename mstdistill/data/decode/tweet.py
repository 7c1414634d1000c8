"""Tweets as BERTweet reads them (data protocol, CrisisMMD)."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from ...errors import ConfigError
from .emoji import rejoin_emoji

_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")
_SHORT_LINK = re.compile(r"https?://t\.co/\S*|\bt\.co/\S+")
# NLTK's tweet tokens keep "don't" whole; BERTweet's corpus has it as "do n't"
_REWRITES = (
    ("cannot ", "can not "), ("n't ", " n't "), ("n 't ", " n't "), ("ca n't", "can't"), ("ai n't", "ain't"),
    ("'m ", " 'm "), ("'re ", " 're "), ("'s ", " 's "), ("'ll ", " 'll "), ("'d ", " 'd "), ("'ve ", " 've "),
    (" p . m .", "  p.m."), (" p . m ", " p.m "), (" a . m .", " a.m."), (" a . m ", " a.m "),
)  # fmt: skip


def normalise_tweet(text: str) -> str:
    """A tweet as BERTweet's corpus writes it: mojibake and escapes resolved, emoji in two pieces rejoined, t.co links
    removed, other links HTTPURL, mentions @USER, emoji as words, contractions split, tokens apart by one space.

    Raises:
        ConfigError: ftfy, emoji or NLTK is not installed.
    """
    fix_encoding, fix_text, demojize, tokenizer = _tools()
    text = _ESCAPE.sub(lambda match: chr(int(match[1] or match[2], 16)), text)
    # a pair of escapes may have been the halves of one emoji
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    # curly quotes may be a piece of an emoji, so they are straightened afterwards
    text = fix_text(rejoin_emoji(fix_encoding(text))).rstrip()
    text = _SHORT_LINK.sub(" ", text).replace("’", "'").replace("…", "...")
    tokens = " ".join(filter(None, (_token(word, demojize) for word in tokenizer.tokenize(text))))
    if text.endswith(" "):  # a link closed the tweet: a contraction before it isn't the last word
        tokens += " "
    for before, after in _REWRITES:
        tokens = tokens.replace(before, after)
    return " ".join(tokens.split())


def _token(word: str, demojize: Any) -> str:
    low = word.lower()
    if word.startswith("@") and len(word) > 1:
        return "@USER"
    if low.startswith(("http", "www")):
        return "HTTPURL"
    return str(demojize(word))


@lru_cache(maxsize=1)
def _tools() -> tuple[Any, Any, Any, Any]:
    try:
        from emoji import demojize
        from ftfy import fix_encoding, fix_text
        from nltk.tokenize import TweetTokenizer
    except ImportError as error:
        raise ConfigError(f"tweets need ftfy, emoji and nltk ({error}): pip install 'mstdistill[prepare]'") from None
    return fix_encoding, fix_text, demojize, TweetTokenizer()
