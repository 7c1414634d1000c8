"""From a student to a folder of artefacts with their table: made, run, judged, and only then renamed into place."""

from __future__ import annotations

import importlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..files import replace_folder
from .checking import Agreement, Run, compare
from .intake import Intake, told
from .names import TOLERANCES, Kind
from .rows import RandomRows, Rows, input_shape
from .table import export_markdown, export_table
from .timing import latencies
from .tracing import Subject

_HOW = {"safetensors": "to_safetensors", "onnx": "to_onnx", "torch-export": "to_torch_export",
        "executorch": "to_executorch"}  # fmt: skip
Fill = Callable[[Path, str, dict[str, Any]], None]


@dataclass
class Exported:
    """What an export made.

    Attributes:
        folder: where it lies.
        figures: the content of export.json.
    """

    folder: Path
    figures: dict[str, Any]

    @property
    def within(self) -> bool:
        """Whether every artefact is within its tolerance."""
        return all(one["within"] for one in self.figures["artefacts"])

    @property
    def beyond(self) -> list[str]:
        """What isn't, in words."""
        return [f"{one['title']}: {line}" for one in self.figures["artefacts"] for line in one["beyond"]]

    def table(self) -> Any:
        """For the terminal."""
        return export_table(self.figures)


def export(
    folder: Path,
    module: nn.Module,
    config: Mapping[str, Any],
    wanted: Sequence[Kind],
    splits: Mapping[str, Rows],
    calibration: Rows | None,
    intake: Intake | None,
    fill: Fill,
    random: int = 32,
) -> Exported:
    """Make the artefacts, run them beside the student, write the folder.

    Args:
        folder: a new one; complete or not there at all.
        module: the network; a float32 copy of it on the CPU is exported.
        config: of the student.
        splits: what artefacts are tried on, by name; empty: random inputs.
        calibration: training rows, for int8-static.
        intake: arithmetic before the student, which graphs take in.
        random: inputs where there are no splits.
        fill: called with the temporary folder, the table in Markdown and the config, to write config and card.

    Raises:
        ConfigError: the network can't be exported so, or nothing says what it takes.
    """
    started = time.monotonic()
    static = any(kind.quantise == "int8-static" for kind in wanted)
    if static and (calibration is None or not len(calibration)):
        raise ConfigError("int8-static is calibrated on training rows, and there are none: give train=")
    splits = {name: rows for name, rows in splits.items() if len(rows)}
    tried: dict[str, Rows] = dict(splits)
    if not tried:
        tried["random inputs"] = RandomRows(module, input_shape(module, dict(config)), intake, random)
    with _prepared(module) as network:
        view, _ = next(iter(tried.values())).take(0, 2)
        view = view.repeat(3 - len(view), *(1,) * (view.dim() - 1))
        subject = Subject(network, {}, view, intake, calibration if static else None)
        subject.config = _described(subject, config)
        with replace_folder(folder) as temporary:
            seconds = _made(subject, wanted, temporary)
            runs = {kind.title: _how(kind).opened(temporary / kind.file, subject) for kind in wanted}
            for kind in {kind.form: kind for kind in wanted}.values():
                _how(kind).finish((temporary / kind.file).parent, subject)
            figures = _figures(subject, wanted, runs, tried, temporary)
            figures["made_seconds"], figures["seconds"] = seconds, round(time.monotonic() - started, 1)
            del runs  # files are let go of
            markdown = export_markdown(figures)
            (temporary / "export.json").write_text(json.dumps(figures, indent=1))
            (temporary / "export.md").write_text(f"# Exported\n\n{markdown}")
            fill(temporary, markdown, subject.config)
    return Exported(folder, figures)


class _prepared:
    """Within the block the network is in eval mode; it is given back as it was found."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, [part for part in module.modules() if part.training]
        tensors = [*module.parameters(), *module.buffers()]
        if any(x.device.type != "cpu" for x in tensors):
            raise ConfigError("the student is exported on a CPU: student.to('cpu') first")
        if any(x.dtype in (torch.float64, torch.float16, torch.bfloat16) for x in module.parameters()):
            raise ConfigError("the student is exported in float32: student.float() first")

    def __enter__(self) -> nn.Module:
        return self.module.eval()

    def __exit__(self, *_: object) -> None:
        for part in self.training:
            part.training = True


def _described(subject: Subject, config: Mapping[str, Any]) -> dict[str, Any]:
    """The student's config with what artefacts take and what is done before them."""
    return {
        **config,
        "input_shape": list(subject.view.shape[1:]),
        "preprocessing": {
            "before": told(subject.module, config),
            "inside": None if subject.intake is None else subject.intake.facts(),
            "input_type": str(subject.example.dtype).removeprefix("torch."),
        },
    }


def _how(kind: Kind) -> Any:
    return importlib.import_module(f".{_HOW[kind.form]}", __package__)


def _made(subject: Subject, wanted: Sequence[Kind], folder: Path) -> dict[str, float]:
    """Write every artefact; seconds by title."""
    seconds = {}
    for kind in wanted:
        started = time.monotonic()
        (folder / kind.file).parent.mkdir(parents=True, exist_ok=True)
        _how(kind).write(subject, kind.quantise, folder / kind.file)
        seconds[kind.title] = round(time.monotonic() - started, 2)
    return seconds


def _figures(
    subject: Subject, wanted: Sequence[Kind], runs: Mapping[str, Run], tried: Mapping[str, Rows], folder: Path
) -> dict[str, Any]:
    found: dict[str, dict[str, Agreement]] = {
        name: compare(subject.plain, runs, rows, subject.raw, subject.config.get("ignore_index"))
        for name, rows in tried.items()
    }
    took = latencies(subject.plain, runs, next(iter(tried.values())), subject.raw)
    # what the weights weigh as plain float32
    whole = sum(x.numel() * x.element_size() for x in subject.module.state_dict().values() if hasattr(x, "numel"))
    artefacts = []
    for kind in wanted:
        beyond = [f"{name}: {line}" for name, rows in tried.items()
                  for line in found[name][kind.title].beyond(TOLERANCES[kind.quantise], rows.random)]  # fmt: skip
        size = (folder / kind.file).stat().st_size
        artefacts.append({
            "title": kind.title, "format": kind.form, "quantise": kind.quantise, "file": kind.file, "bytes": size,
            "of_float32": size / max(whole, 1),
            "splits": [{"split": name, "of_rows": len(rows), **found[name][kind.title].as_dict()}
                       for name, rows in tried.items()],
            "seconds": took[kind.title],
            "times_as_fast": {batch: eager and mine and eager / mine for batch, eager in took["student"].items()
                              for mine in (took[kind.title][batch],)},
            "within": not beyond, "beyond": beyond,
        })  # fmt: skip
    return {
        "network": type(subject.module).__name__,
        "parameters": sum(p.numel() for p in subject.module.parameters()),
        "float32_bytes": whole,
        "random": any(rows.random for rows in tried.values()),
        "calibrated_on": len(subject.calibration) if subject.calibration is not None else None,
        "student": {"seconds": took["student"]},
        "artefacts": artefacts,
        "tolerances": {kind.quantise: asdict(TOLERANCES[kind.quantise]) for kind in wanted},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(),
                    "torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip
