"""Ranks of a run forked from a process that has imported everything: a start costs what its training costs.

To be imported before any work, in a process of its own: a forked OpenMP pool would hang.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable

import torch

torch.set_num_threads(1)

import accelerate  # noqa: E402, F401  what a run imports on its way is here before the first fork
import sklearn.metrics  # noqa: E402, F401
import torch._dynamo  # noqa: E402  the optimisers load it at their first step, for seconds

import mstdistill.pipeline  # noqa: E402, F401

gc.collect()
gc.freeze()  # each stage ends with a full garbage collection, which needn't walk what the imports left


def fork(work: Callable[[], int]) -> int:
    """Start work in a child that ends with the code it gives; the child's process number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fork_ranks(ranks: int, work: Callable[[int], int]) -> list[int]:
    """Start each rank in a child, told of the others as torchrun does; their process numbers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def rank_of(rank: int) -> Callable[[], int]:
        def started() -> int:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                           "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
                           "MASTER_PORT": str(port)}  # fmt: skip
            return work(rank)

        return started

    return [fork(rank_of(rank)) for rank in range(ranks)]
