"""The tests' time by file, printed at the end of a run: processor seconds, children's included, beside the clock's."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


def _processor() -> float:
    """Seconds of this process, of its children that have ended, and of those that serve on, where Linux tells."""
    now = os.times()
    spent = now.user + now.system + now.children_user + now.children_system
    for task in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # a thread or a child that has just ended
            for child in task.read_text().split():
                ticks = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:15]
                spent += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return spent


@dataclass
class _Spent:
    tests: int = 0
    processor: float = 0.0
    clock: float = 0.0


class Timing:
    """Measures each phase where it runs, under xdist in a worker, and adds the reports up where they arrive."""

    def __init__(self) -> None:
        self.mark = _processor()
        self.files: dict[str, _Spent] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, Any, Any]:
        self.mark = _processor()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        now = _processor()
        report.processor, self.mark = now - self.mark, now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        spent = self.files.setdefault(report.nodeid.split("::")[0], _Spent())
        spent.tests += report.when == "setup"
        spent.processor += getattr(report, "processor", 0.0)  # a worker that crashed sends none
        spent.clock += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if len(self.files) < 2:
            return
        terminalreporter.section("time by file: processor s, clock s, tests")
        for name, spent in sorted(self.files.items(), key=lambda pair: -pair[1].processor):
            terminalreporter.line(f"{spent.processor:8.1f} {spent.clock:8.1f} {spent.tests:5d}  {name}")
        whole = [sum(getattr(s, key) for s in self.files.values()) for key in ("processor", "clock", "tests")]
        terminalreporter.line(f"{whole[0]:8.1f} {whole[1]:8.1f} {whole[2]:5d}  together")
