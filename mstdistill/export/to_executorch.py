"""ExecuTorch's .pte for phones and microcontrollers: XNNPACK's kernels, the portable ones for the rest."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, first_line
from .rows import BATCH
from .tracing import Subject, quiet, refuse_operator


def write(subject: Subject, quantise: str, file: Path) -> None:
    """Write the file; memory is planned for the largest batch, which is stated in the config.

    Raises:
        ConfigError: the network can't be traced, quantised or lowered.
    """
    name, most = type(subject.module).__name__, _most(subject)
    if quantise == "int8-static":
        from .pt2e import for_executorch

        program = for_executorch(subject, most)
    else:
        program = subject.traced("executorch", most=most)
    try:
        with quiet(), _compiler_found():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    except Exception as error:  # of many kinds, the package's own ImportErrors among them
        raise refuse_operator(program, "executorch", name, error) from None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lowered.buffer)


def opened(file: Path, subject: Subject) -> Callable[[Tensor], Tensor]:
    """The file, loaded and run by ExecuTorch's runtime.

    Raises:
        ConfigError: the runtime here doesn't load it.
    """
    try:
        with quiet():
            from executorch.runtime import Runtime

            program = Runtime.get().load_program(str(file))
            method = program.load_method("forward")
            method.execute([subject.example[:1].contiguous()])
    except Exception as error:
        raise ConfigError(f"executorch: its runtime here can't run {file.name} ({first_line(error)}); one release of "
                          f"it fits one of torch, here {torch.__version__}") from None  # fmt: skip
    most = _most(subject)

    def run(view: Tensor) -> Tensor:
        parts = [method.execute([part.contiguous()])[0].clone() for part in view.split(most)]
        return torch.cat(parts)

    run.keeps = program  # type: ignore[attr-defined]  # the method lives in it
    return run


def finish(folder: Path, subject: Subject) -> None:
    """Write the config beside the files: a .pte holds none."""
    config = {**subject.config, "largest_batch": _most(subject)}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def _most(subject: Subject) -> int:
    """Rows of the largest batch that memory is planned for."""
    return max(2, min(BATCH, int(8e6 // (4 * subject.example[0].numel()))))


class _compiler_found:
    """Within the block `flatc`, which lies beside the interpreter, is found."""

    def __enter__(self) -> None:
        self.path = os.environ.get("PATH", "")
        if shutil.which("flatc") is None:
            os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.path}"

    def __exit__(self, *_: object) -> None:
        os.environ["PATH"] = self.path
