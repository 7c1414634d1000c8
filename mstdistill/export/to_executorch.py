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
from torch.export import ExportedProgram

from ..errors import ConfigError, first_line
from .rows import BATCH
from .tracing import Subject, quiet, refuse_operator

# What is kept of all files: the batch that each of them takes.
_LARGEST = "largest batch"


def write(subject: Subject, quantise: str, file: Path) -> None:
    """Write the file; memory is planned for a largest batch, which is stated in the config.

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

            _say_strides(program)
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    except Exception as error:  # of many kinds, the package's own ImportErrors among them
        raise refuse_operator(program, "executorch", name, error) from None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lowered.buffer)


def _say_strides(program: ExportedProgram) -> None:
    """Pools whose stride is their window say so: XNNPACK's partitioner reads the argument."""
    pools = (torch.ops.aten.max_pool2d.default, torch.ops.aten.avg_pool2d.default)
    for node in program.graph.nodes:
        if node.target in pools and len(node.args) == 2:
            node.args = (*node.args, node.args[1])


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
    # lowering may plan for less than it was asked for: memory's order may depend on the batch being below the channels
    most = int(method.metadata.input_tensor_meta(0).sizes()[0])
    subject.kept[_LARGEST] = min(most, subject.kept.get(_LARGEST, most))

    def run(view: Tensor) -> Tensor:
        parts = [method.execute([part.contiguous()])[0].clone() for part in view.split(most)]
        return torch.cat(parts)

    run.keeps = program  # type: ignore[attr-defined]  # the method lives in it
    return run


def finish(folder: Path, subject: Subject) -> None:
    """Write the config beside the files: a .pte holds none."""
    config = {**subject.config, "largest_batch": subject.kept[_LARGEST]}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def _most(subject: Subject) -> int:
    """Rows of the largest batch that memory is to be planned for."""
    return max(2, min(BATCH, int(8e6 // (4 * subject.example[0].numel()))))


class _compiler_found:
    """Within the block `flatc`, which lies beside the interpreter, is found."""

    def __enter__(self) -> None:
        self.path = os.environ.get("PATH", "")
        if shutil.which("flatc") is None:
            os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.path}"

    def __exit__(self, *_: object) -> None:
        os.environ["PATH"] = self.path
