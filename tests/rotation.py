"""Tests that take long and vary one thing only, each in a way that others prove too: of these a run takes a part.

The number of the commit picks it, so that the next commits take the others; plain `pytest` and `scripts/test.sh --all`
take all of them. What was left out is said at the end of a run.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

PARTS = 4
# test functions, with all of their cases or, in brackets, one of them
_LAUNCH = "tests/test_launch_configs.py::"
FAMILIES = {
    # the same training, started by another launcher: each imports everything in each of its processes
    "launchers": (
        f"{_LAUNCH}test_one_process_starts", f"{_LAUNCH}test_two_cpu_processes_train_together_and_stop_when_asked",
        f"{_LAUNCH}test_zero_starts_on_cpus", f"{_LAUNCH}test_a_slurm_job_saves_and_queues_again",
        f"{_LAUNCH}test_an_elastic_run_outlives_a_lost_process",
        "tests/distributed/test_nodes.py::test_a_lost_node_is_replaced_and_the_weights_are_those_of_an_undisturbed_run",
    ),
    # the same way from files to a student, with another publisher's; test_prepare.py reads those of all
    "tasks": ("tests/test_tasks.py::test_from_raw_files_to_a_student",),
    # the same training, its weights and states shared out further
    "engines": ("tests/distributed/test_engines.py::test_zero_equals_one_process",),
    # the same rehearsal of a run, with another method or another shipped recipe in it
    "plans": ("tests/test_planning.py::test_methods_of_the_comparison_plan_too",
              "tests/test_planning.py::test_every_recipe_plans_without_data_on_every_gpu"),
    # the same plan against the same measurement, of another student
    "peaks": ("tests/test_planning.py::test_measured_peak_is_within_a_seventh",),
    # the same promise, that a killed process goes on to the same bytes; runs that stop go on to them in several files
    "kills": ("tests/faults/test_kill.py::test_twenty_kills_change_no_byte",
              "tests/faults/test_lost_ranks.py::test_killed_ranks_change_no_byte",
              "tests/test_prepare.py::test_killed_and_gone_on_with"),
    # pages followed to their end; what their commands and examples hold is tested where it belongs
    "pages": ("tests/test_few_labels.py::test_the_page_trains_on_pairs_without_labels_and_sounds",
              "tests/test_tutorial.py::test_the_tutorial_ends_with_an_app"),
    # the same three stages through Triton's interpreter; every kernel is compared there by itself each time
    "interpreted": ("tests/parity/test_parity.py::test_agrees_with_released_code[trajectory_a-triton]",
                    "tests/test_speed_paths.py::test_both_kernel_sets_train_alike"),
}  # fmt: skip


def left_out(names: Iterable[str], number: int) -> dict[str, str]:
    """The tests, by their node ids, that the run of this number leaves to others, each with its family."""
    names, found = list(names), {}
    for family, members in FAMILIES.items():
        own = sorted(name for name in names if name in members or name.split("[")[0] in members)
        found |= {name: family for place, name in enumerate(own) if place % PARTS != number % PARTS}
    return found


def number_of_commit(root: Path) -> int | None:
    """How many commits led to the one checked out; in a shallow clone its hash. None: no repository."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if git("rev-parse", "--is-shallow-repository") == "true":
            return int(git("rev-parse", "HEAD"), 16)
        return int(git("rev-list", "--count", "HEAD"))
    except (OSError, subprocess.CalledProcessError):
        return None


class Rotation:
    """Skips what another run takes."""

    def __init__(self, root: Path) -> None:
        self.number = number_of_commit(root)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.number is None:
            return
        others = left_out([item.nodeid for item in items], self.number)
        for item in items:
            if item.nodeid in others:
                reason = f"of the {others[item.nodeid]} another part is run; --all runs all"
                item.add_marker(pytest.mark.skip(reason=reason))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        families = ", ".join(FAMILIES)
        part = "all parts" if self.number is None else f"part {self.number % PARTS + 1} of {PARTS} (by the commit)"
        terminalreporter.section(f"{families}: {part}; scripts/test.sh --all runs all")
