"""What comes from the Hugging Face Hub or a folder, and one line where it doesn't come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ConfigError, MstdistillError, first_line


def located(source: str) -> str:
    """A hub id as it is, a folder with its ~ resolved."""
    path = Path(source).expanduser()
    return str(path) if path.exists() else source


@contextmanager
def fetching(owner: str, source: str, what: str) -> Iterator[None]:
    """Within the block something of `source` is loaded: quietly, and with one line where that fails.

    Raises:
        ConfigError: an unknown id, a hub that can't be reached, a folder without the files.
    """
    if _looks_like_path(source) and not Path(source).expanduser().exists():
        raise ConfigError(f"{owner}: there is no folder {source}; give a hub id (org/name) or a downloaded folder")
    try:
        with quiet():
            yield
    except MstdistillError:
        raise
    except ImportError as error:
        raise ConfigError(f"{owner}: {what} of {source} needs a package: {first_line(error)}") from None
    except Exception as error:  # transformers, the hub's client and its transport each have kinds of their own
        raise ConfigError(f"{owner}: {_why(source, what, error)}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block transformers says nothing but errors."""
    import transformers

    before, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()


def _why(source: str, what: str, error: BaseException) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return f"{source} brings code of its own; read it, then set trust_remote_code: true"
    if Path(source).expanduser().exists():
        return f"{source} holds no {what} ({first_line(error)}); name the right folder, or set `processor` beside `hf`"
    if isinstance(error, OSError) and "is not a local folder and is not a valid model identifier" in text:
        return f"the hub knows no {source!r}; check the id (org/name), or set `hf` to a downloaded folder"
    if isinstance(error, OSError):
        offline = (
            "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "") else first_line(error)
        )
        return (
            f"{what} of {source} isn't in the cache and the hub can't be reached ({offline}); download the model's "
            "whole folder elsewhere and set `hf` to its path"
        )
    return f"{what} of {source} can't be loaded ({first_line(error)})"


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1
