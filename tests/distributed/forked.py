"""The toy run on several processes: `python -m tests.distributed.forked PROCESSES OUT key=value ...`"""

from __future__ import annotations

import os
import sys

from tests.forking import fork_ranks  # isort: skip  before any work
from tests import toy


def _work(rank: int) -> int:
    sys.argv = sys.argv[1:]
    try:
        toy.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def main() -> None:
    ranks = int(sys.argv[1])
    if ranks == 1:
        sys.exit(_work(0))
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in fork_ranks(ranks, _work)]
    sys.exit(max(map(abs, codes)))


if __name__ == "__main__":
    main()
