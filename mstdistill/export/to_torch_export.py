"""torch.export's own file, .pt2: torch runs it, or AOTInductor compiles it, without the classes of this package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .tracing import Subject, quiet


def write(subject: Subject, quantise: str, file: Path) -> None:
    """Write the file; its extra file config.json is the student's config.

    Raises:
        ConfigError: the network can't be traced or quantised.
    """
    if quantise.startswith("int8"):
        from .pt2e import for_torch

        program = for_torch(subject, dynamic=quantise == "int8-dynamic")
    else:
        program = subject.traced("torch-export", half=quantise == "fp16")
    file.parent.mkdir(parents=True, exist_ok=True)
    # nobody needs to know where the code lay: it would be a third of a small file
    with _without_places(program), quiet():
        torch.export.save(program, file, extra_files={"config.json": json.dumps(subject.config)})


def opened(file: Path, subject: Subject) -> Callable[[Tensor], Tensor]:
    """The file, loaded and run by torch."""
    with quiet():
        if "int8" in file.name:
            from . import pt2e  # noqa: F401  # registers the operators
        module = torch.export.load(file).module()

    def run(view: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = module(view)
            return logits

    return run


def finish(folder: Path, subject: Subject) -> None:
    """Write the config beside the files."""
    (folder / "config.json").write_text(json.dumps(subject.config, indent=1))


class _without_places:
    """Within the block a graph's nodes have no stack traces."""

    def __init__(self, program: ExportedProgram) -> None:
        self.nodes = [node for node in program.graph.nodes if "stack_trace" in node.meta]

    def __enter__(self) -> None:
        self.kept = [node.meta.pop("stack_trace") for node in self.nodes]

    def __exit__(self, *_: object) -> None:
        for node, trace in zip(self.nodes, self.kept, strict=True):
            node.meta["stack_trace"] = trace
