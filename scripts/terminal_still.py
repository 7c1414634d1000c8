"""A picture of the terminal after a command, from what the command really says there.

    python scripts/terminal_still.py --out docs/results/terminal.svg -- train av-digits

runs `mstdistill train av-digits` in a folder of its own and draws what it prints, in its colours. `--said FILE` draws
what an earlier call wrote there instead, or, where there is no such file, keeps what is said in it.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from mstdistill.files import write_text

_WIDTH = 100
# Fonts from elsewhere: pages that show the picture don't load them.
_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def said_by(words: list[str]) -> str:
    """What `mstdistill WORDS` prints on a terminal, bars of progress aside, with its escape sequences.

    Raises:
        SystemExit: the command failed.
    """
    variables = {"COLUMNS": str(_WIDTH), "FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-m", "mstdistill", *words], cwd=folder, env=os.environ | variables,
                              stdout=subprocess.PIPE, text=True, check=False)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"mstdistill {' '.join(words)} ended with {done.returncode}")
    return done.stdout


def drawn(said: str, title: str) -> str:
    """The picture, as SVG that needs nothing else.

    Args:
        said: text with escape sequences.
        title: stands on the window, and after the prompt.
    """
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    console.print(Text(f"$ {title}", style="bold"))
    for line in map(Text.from_ansi, said.splitlines()):
        if line.plain.strip():  # where bars of progress stood there are empty ones
            console.print(line)
    return _FONTS.sub("", console.export_svg(title=title, theme=MONOKAI, unique_id="terminal"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--said", type=Path, help="what the command said: read, or kept there")
    parser.add_argument("words", nargs="+", help="after --: what follows `mstdistill`")
    given = parser.parse_args()
    known = given.said is not None and given.said.exists()
    said = given.said.read_text() if known else said_by(given.words)
    if given.said is not None and not known:
        write_text(given.said, said)
    write_text(given.out, drawn(said, " ".join(["mstdistill", *given.words])))
    print(f"{given.out}: {given.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
