"""Forget what a stopped installer left in halves in this interpreter's environment: it is installed anew then.

    .venv/bin/python scripts/halves.py

A package counts as installed by its metadata, whatever became of its files. Where files of its list are missing or
have another size, or where there is no list, the metadata go; so do leftovers that pip renamed to take back.
"""

from __future__ import annotations

import shutil
import sysconfig
from importlib import metadata
from pathlib import Path


def halves(place: Path) -> list[Path]:
    """The metadata folders of packages that aren't whole, and what pip renamed."""
    found = list(place.glob("~*"))
    for folder in sorted(place.glob("*.dist-info")):
        try:
            files = metadata.PathDistribution(folder).files
            whole = bool(files) and all(_there(place / str(one), one.size) for one in files or ())
        except (OSError, ValueError):  # a list that ends within a line
            whole = False
        if not whole:
            found.append(folder)
    return found


def _there(path: Path, size: int | None) -> bool:
    """Whether a file is as its list says; compiled ones are made anew by themselves."""
    if path.suffix == ".pyc":
        return True
    try:
        return size is None or path.stat().st_size == size
    except OSError:
        return False


def main() -> None:
    """Of the environment that runs this."""
    for path in halves(Path(sysconfig.get_paths()["purelib"])):
        print(f"left in halves by an earlier call, installed anew: {path.name.removesuffix('.dist-info').lstrip('~')}")
        shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
