"""What was run with which torch: notes a run of test_newest.sh, and makes the table of docs/compatibility.md.

python scripts/compatibility.py --note DIR        tests.xml (JUnit's form) and builds.txt lie there
python scripts/compatibility.py                   the table alone, of the notes that are there
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import re
import warnings
import xml.etree.ElementTree as ElementTree
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOTES = ROOT / "docs" / "results" / "compatibility"
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- table: scripts/compatibility.py -->", "<!-- end of the table -->"


def versions() -> dict[str, str]:
    """Of what depends on torch: a version, "not installed", or "doesn't load"."""
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "numpy", "torchaudio", "torchvision", "accelerate", "deepspeed", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(name)
            found[name] = str(getattr(module, "__version__", found[name]))
        except Exception:  # a library that isn't this torch's
            found[name] += ", doesn't load"
    return found


def note(folder: Path) -> Path:
    """Write what a run found."""
    suite = next(ElementTree.parse(folder / "tests.xml").iter("testsuite"))
    count = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    facts: dict[str, Any] = {
        **versions(), "machine": platform.machine(),
        "passed": count["tests"] - failed - count["skipped"], "failed": failed, "skipped": count["skipped"],
        "seconds": round(float(suite.get("time", "0"))), "builds": "no Triton",
    }  # fmt: skip
    builds = folder / "builds.txt"
    if builds.exists():
        text = builds.read_text()
        made = max((int(n) for n in re.findall(r"of (\d+) built", text)), default=0)
        wrong = re.findall(r"(\d+) complaints", text)[-1]
        facts["builds"] = f"{made} built, {wrong} beyond a limit"
    NOTES.mkdir(parents=True, exist_ok=True)
    path = NOTES / f"torch-{facts['torch'].replace('+', '-')}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n")
    return path


def table() -> str:
    """Markdown, the newest torch first."""
    notes = [json.loads(path.read_text()) for path in NOTES.glob("torch-*.json")]
    notes.sort(key=lambda facts: [int(n) for n in re.findall(r"\d+", facts["torch"])[:3]], reverse=True)
    head = ("torch", "triton", "torchaudio", "torchvision", "Python", "tests passed, failed, skipped", "builds")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for facts in notes:
        cells = (facts["torch"], facts["triton"], facts["torchaudio"], facts["torchvision"], facts["python"],
                 f"{facts['passed']:,}, {facts['failed']}, {facts['skipped']}", facts["builds"])  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--note", type=Path, metavar="DIR", help="results of a run")
    options = parser.parse_args()
    if options.note:
        print(f"noted: {note(options.note).relative_to(ROOT)}")
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()
