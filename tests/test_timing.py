"""The time by file at the end of a run."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

from .timing import Timing, _processor


def test_time_is_added_up_by_file_and_the_dearest_comes_first() -> None:
    timing, said = Timing(), []
    for name, when, processor, clock in (("a", "setup", 1.0, 2.0), ("a", "call", 1.5, 3.0), ("b", "setup", 0.5, 0.5),
                                         ("b", "call", 9.0, 4.5), ("b", "setup", 0.0, 0.0)):  # fmt: skip
        report: Any = SimpleNamespace(nodeid=f"tests/{name}.py::test", when=when, processor=processor, duration=clock)
        timing.pytest_runtest_logreport(report)
    reporter: Any = SimpleNamespace(section=lambda title: None, line=said.append)
    timing.pytest_terminal_summary(reporter)
    assert [line.split() for line in said] == [
        ["9.5", "5.0", "2", "tests/b.py"], ["2.5", "5.0", "1", "tests/a.py"], ["12.0", "10.0", "3", "together"]
    ]  # fmt: skip


def test_children_count_while_they_run_and_once_when_they_have_ended() -> None:
    before = _processor()
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    running = _processor() - before
    child.communicate(b"\n")
    ended = _processor() - before
    assert 0.25 < running <= ended + 0.02 < 0.6
