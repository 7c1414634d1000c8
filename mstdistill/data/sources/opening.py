"""Where data lie: a folder, a file, or the Hugging Face Hub (`hub:org/name`, `hub:org/name@config`)."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...errors import ConfigError, DataError, first_line
from ..place import home
from .paths import with_files

HUB = "hub:"
# Larger repositories are prepared straight from the hub.
STREAM_BYTES = 20e9
# Errors of `datasets` whose cause says more.
_WRAPPERS = ("DatasetGenerationError", "DatasetBuildError", "DatasetGenerationCastError")
# So many files of a folder are tried for the one that can't be read.
_LOOKED_AT = 200
# Letters that `datasets` reads as a pattern of names.
_PATTERN = "[]*?"
_PATTERN_TO_PLAIN = str.maketrans(_PATTERN, "()+!")
# Files that are tables, and which of the readers of `datasets` reads them.
SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".arrow": "arrow"}


@dataclass(frozen=True)
class Raw:
    """A data set as its publisher made it.

    Attributes:
        splits: split -> `datasets.Dataset`, or `datasets.IterableDataset` when streamed.
        streaming: whether rows come one after the other from the hub.
        identity: changes when the data change.
        written: of a table, its rows before cells that name files became those files; else empty.
    """

    splits: dict[str, Any]
    streaming: bool
    identity: str
    written: Mapping[str, Any] = field(default_factory=dict)


def on_hub(location: str) -> tuple[str, str | None]:
    """Repository and config of `hub:org/name@config`."""
    name, _, config = location.removeprefix(HUB).partition("@")
    return name, config or None


def open_raw(location: str, streaming: bool | Literal["auto"] = "auto") -> Raw:
    """A `datasets` folder, files that `datasets` knows, or a hub repository.

    Raises:
        DataError: not there, not readable, or the hub can't be reached.
    """
    import datasets

    datasets.disable_progress_bars()
    path = Path(location).expanduser()
    with _reading(location):
        path = path if location.startswith(HUB) else _unbracketed(path)
        if not location.startswith(HUB) and (path / "dataset_dict.json").exists() | (path / "state.json").exists():
            loaded = datasets.load_from_disk(str(path))
            splits = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"all": loaded}
            return Raw(splits, False, "|".join(f"{name}:{data._fingerprint}" for name, data in splits.items()))
        arguments = _arguments(location, path)
        builder = datasets.load_dataset_builder(**arguments)
        if streaming == "auto":
            size = builder.info.download_size or builder.info.dataset_size or 0
            streaming = location.startswith(HUB) and size > STREAM_BYTES
        splits = dict(datasets.load_dataset(**arguments, streaming=streaming))
        identity = f"{builder.hash}|{builder.info.version}|{builder.config_id}"
        written = {}
        if not streaming and path.is_file():
            written = splits
            splits, files = with_files(splits, path.parent)
            identity += f"|{files}" if files else ""
        return Raw(splits, streaming, identity, written)


def _unbracketed(folder: Path) -> Path:
    """The same files under a name that isn't read as a pattern: links in the cache, where there are brackets in it."""
    if not any(letter in str(folder) for letter in _PATTERN) or not folder.is_dir():
        return folder
    source = folder.resolve()
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    listing = "\n".join([str(source), *(str(path.relative_to(source)) for path in files)])
    mirror = home() / "links" / hashlib.sha256(listing.encode()).hexdigest()[:20]
    if mirror.exists():
        return mirror
    made = mirror.with_name(f"{mirror.name}-{os.getpid()}")
    for path in files:
        link = made / str(path.relative_to(source)).translate(_PATTERN_TO_PLAIN)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    with suppress(OSError):  # another process of this run has made the same
        made.rename(mirror)
    shutil.rmtree(made, ignore_errors=True)
    return mirror


def _arguments(location: str, path: Path) -> dict[str, Any]:
    if location.startswith(HUB):
        name, config = on_hub(location)
        return {"path": name, "name": config}
    if (path / "card.json").exists():
        raise DataError(f"{location} is prepared data; name its task in the recipe (task: ..., data.dir: {location})")
    if path.is_dir():
        return {"path": str(path)}
    if not path.exists():
        raise DataError(f"there is no {location}; data are a folder, a file or hub:org/name")
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"{location}: {path.suffix or 'such'} files can't be read; known: {', '.join(sorted(SUFFIXES))}"
        )
    options = {"delimiter": "\t"} if path.suffix == ".tsv" else {}
    return {"path": SUFFIXES[path.suffix], "data_files": glob.escape(str(path)), **options}


def download_prepared(location: str) -> Path:
    """A prepared task that somebody published: the folder with its card.json, downloaded or from the cache.

    Raises:
        DataError: no such repository, or it holds no prepared data.
    """
    from huggingface_hub import snapshot_download

    name, folder = on_hub(location)
    with _reading(location):
        root = Path(snapshot_download(name, repo_type="dataset"))
    found = root / folder if folder else root
    if not (found / "card.json").exists():
        raise DataError(f"{location} holds no prepared data (no card.json); raw data go with: task: own")
    return found


@contextmanager
def _reading(location: str) -> Iterator[None]:
    try:
        with _overheard() as said:
            yield
    except (DataError, ConfigError):
        raise
    except ImportError as error:
        raise DataError(f"{location} needs a package: {first_line(error)}") from None
    except Exception as error:  # `datasets`, its readers and the hub's client each have kinds of their own
        if location.startswith(HUB) and not isinstance(error, (ValueError, TypeError)):
            offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "")
            why = "HF_HUB_OFFLINE is set and it isn't in the cache" if offline else first_line(error)
            raise DataError(f"{location} can't be had ({why}); download the repository and set data.dir to its folder, "
                            "or check its name") from None  # fmt: skip
        named = _file(said) or _culprit(Path(location).expanduser())
        raise DataError(f"{location} can't be read ({named}{_why(error)})") from None


@contextmanager
def _overheard() -> Iterator[list[str]]:
    """What `datasets` logs meanwhile, kept from the screen: which file it fails at stands nowhere else."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("datasets")
    handlers, propagates = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield said
    finally:
        logger.handlers, logger.propagate = handlers, propagates


def _file(said: list[str]) -> str:
    """The file in what `datasets` logged, ready to stand before the cause."""
    named = [match[1] for line in said if (match := re.match(r"Failed to read file '(.+?)' with error", line))]
    return f"{Path(named[-1]).name}: " if named else ""


def _culprit(folder: Path) -> str:
    """Of a folder's files, the first one that can't be read by itself, ready to stand before the cause."""
    import datasets

    if not folder.is_dir():
        return ""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path.is_file()]
    for path in files[:_LOOKED_AT]:
        try:
            with _overheard():
                next(iter(datasets.load_dataset(**_arguments(str(path), path), split="train", streaming=True)), None)
        except Exception:  # see `_reading`
            return f"{path.name}: "
    return ""


def _why(error: BaseException) -> str:
    """What an error of `datasets` comes down to: it wraps its readers' errors in others that say nothing."""
    while type(error).__name__ in _WRAPPERS and (error.__cause__ or error.__context__) is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    if isinstance(error, UnicodeDecodeError):
        return f"{first_line(error)}; save it as UTF-8"
    if hasattr(error, "requested_column_names"):
        found, wanted = set(error.table_column_names), set(error.requested_column_names)  # type: ignore[attr-defined]
        parts = [f"{word} {', '.join(map(repr, sorted(names)))}"
                 for word, names in (("also has", found - wanted), ("lacks", wanted - found)) if names]  # fmt: skip
        return f"its columns aren't those of the files before it: it {' and '.join(parts) or 'has other types'}"
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:200]}" if said else type(error).__name__
