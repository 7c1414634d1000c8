"""Errors meant for people: one line that says what is wrong, where, and how to mend it.

The command line prints them without a traceback and exits with their `exit_code`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class MstdistillError(Exception):
    """A mistake that the user can mend.

    Args:
        message: names and values in it may hold anything; it is kept to one line.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", message).strip())


class ConfigError(MstdistillError):
    """A recipe, an override or an argument that can't be used."""


class DataError(MstdistillError):
    """Missing, truncated, swapped or impossible data."""


class HubError(MstdistillError):
    """The Hugging Face Hub can't be reached, refuses what was asked of it, or has no such thing."""


class CheckpointError(MstdistillError):
    """A checkpoint or run folder that can't be continued or written."""


class FolderInUse(CheckpointError):
    """Another run holds the folder."""


class NonFiniteError(MstdistillError):
    """NaN or Inf in a loss; the state was saved before this was raised."""


class Interrupted(MstdistillError):
    """The user stopped the run; its state was saved."""

    exit_code = 130


class Preempted(Interrupted):
    """A scheduler asked the run to stop; its state was saved. No failure: it is to be started again."""

    exit_code = 0


class LostProcess(MstdistillError):
    """Another process of this run died, hangs or can't be reached.

    Args:
        told: whether another process says so already.
    """

    exit_code = 75  # "try again" among the exit codes of sysexits

    def __init__(self, message: str, told: bool = False) -> None:
        super().__init__(message)
        self.told = told


def first_line(error: BaseException, most: int = 160) -> str:
    """What an error of somebody else's says, short enough for one line of ours."""
    text = str(error).strip()
    return text.splitlines()[0][:most] if text else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the closest known ones, or all of them where none is close."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.4)
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + (", ".join(options[:12]) + (", ..." if len(options) > 12 else "") if options else "none")
