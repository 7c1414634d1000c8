"""The toy run with every stage's module under FSDP2, by torch itself: Accelerate engages FSDP2 on GPUs only.

python -m tests.fully_sharded OUT key=value ...
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from mstdistill.engine import loop
from mstdistill.engine.fully_sharded import FullyShardedJoined
from tests import toy


class ByTorch(FullyShardedJoined):
    def prepare(self) -> tuple[nn.Module, Any]:
        for child in self.inner.children():
            if any(True for _ in child.parameters()) and not isinstance(child, nn.ModuleList):
                fully_shard(child)
        fully_shard(self.inner)
        assert any(type(p.data).__name__ == "DTensor" or hasattr(p, "placements") for p in self.inner.parameters())
        self.plain = torch.optim.Adam([p for p in self.inner.parameters() if p.requires_grad], self.settings.lr)
        return self.inner, self.plain

    def backward(self, loss: torch.Tensor, closes_step: bool) -> None:
        self.inner.set_requires_gradient_sync(closes_step)  # type: ignore[operator]
        loss.backward()

    def around(self, closes_step: bool) -> Any:
        from contextlib import nullcontext

        return nullcontext()


def join(accelerator: Any, module: nn.Module, settings: Any, recorded: bool, batch_size: int) -> Any:
    return ByTorch(accelerator, module, settings)


def main() -> None:
    loop.join = join
    toy.main()


if __name__ == "__main__":
    main()
