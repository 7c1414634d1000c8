"""The student as a graph, by torch.export; what can't be one is named with its place, in one line."""

from __future__ import annotations

import copy
import io
import linecache
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..errors import ConfigError, first_line
from ..teachers.tap import call
from .intake import Intake, Scaled
from .rows import Rows, batches

_OPERATOR = re.compile(r"OpOverload\(op='([\w.:]+)'|torch\.ops\.([\w.]+)|(aten[.:]+\w+(?:\.\w+)?)"
                       r"|out variants: \{'([\w:]+)'")  # fmt: skip
_LINE = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')


class Logits(nn.Module):
    """A network whose output is its logits alone [B, C] or [B, C, H, W], whatever it returns.

    Args:
        intake: arithmetic before it.
    """

    def __init__(self, module: nn.Module, intake: Intake | None = None) -> None:
        super().__init__()
        self.module, self.scaled = module, nn.Identity() if intake is None else Scaled(intake)

    def forward(self, view: Tensor) -> Tensor:
        return call(self.module, {"view": self.scaled(view)}, ("view",))


class HalfLogits(Logits):
    """As `Logits`, computed in half precision; inputs and logits stay as they are."""

    def __init__(self, module: nn.Module, intake: Intake | None = None) -> None:
        super().__init__(copy.deepcopy(module).half(), intake)

    def forward(self, view: Tensor) -> Tensor:
        seen = self.scaled(view)
        return call(self.module, {"view": seen.half() if seen.is_floating_point() else seen}, ("view",)).float()


@dataclass
class Subject:
    """What is exported.

    Attributes:
        module: the network, in eval mode on the CPU.
        config: of the student.
        view: a batch [2, ...] that it takes.
        intake: arithmetic before it, which artefacts do themselves.
        calibration: training rows; None: there are none.
    """

    module: nn.Module
    config: dict[str, Any]
    view: Tensor
    intake: Intake | None = None
    calibration: Rows | None = None

    def __post_init__(self) -> None:
        self.plain: nn.Module = Logits(self.module).eval()
        self.example = self.raw(self.view)
        # what several artefacts start from
        self.kept: dict[str, Any] = {}

    def raw(self, view: Tensor) -> Tensor:
        """What artefacts take for a view of the student."""
        return view if self.intake is None else self.intake.raw(view)

    def calibrating(self) -> Iterator[Tensor]:
        """Training rows as artefacts take them, in batches."""
        for view, _ in batches(self.calibration) if self.calibration is not None else ():
            yield self.raw(view)

    def traced(self, form: str, half: bool = False, most: int | None = None) -> ExportedProgram:
        """The network's graph with a free batch; of half precision; of at most so many rows.

        Raises:
            ConfigError: it can't be traced; the message says what and where.
        """
        key = f"half {half}, most {most}"
        if key not in self.kept:
            network = (HalfLogits if half else Logits)(self.module, self.intake).eval()
            self.kept[key] = trace(network, self.example, form, type(self.module).__name__, most)
        program: ExportedProgram = self.kept[key]
        return program


def trace(module: nn.Module, example: Tensor, form: str, name: str, most: int | None = None) -> ExportedProgram:
    """See `Subject.traced`."""
    size = torch.export.Dim("batch", min=1, max=most) if most else torch.export.Dim("batch")
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=({0: size},))
    except ConfigError:
        raise
    except Exception as error:  # the compiler's errors are of many kinds
        raise ConfigError(f"{form}: {name} can't be traced ({_why(error)}), at {_place(error)}") from None
    outputs: Any = program.graph.output_node().args[0]
    rows = outputs[0].meta["val"].shape[0]
    if isinstance(rows, int):
        raise ConfigError(f"{form}: {name} gives {rows} rows of logits whatever the batch; its forward fixes the batch")
    return program


def refuse_operator(program: ExportedProgram, form: str, name: str, error: BaseException) -> ConfigError:
    """The line for an operator that a format doesn't have."""
    text, seen = "", error
    while seen is not None:
        text += f"{seen}\n"
        seen = seen.__cause__  # type: ignore[assignment]
    operator = _operator(text)
    if not operator:
        return ConfigError(f"{form} can't hold {name} ({first_line(error)})")
    called, where = _node_of(program, operator)
    return ConfigError(f"{form} has no {called}, which {name} uses{where}; write it otherwise or choose another format")


def _node_of(program: ExportedProgram, operator: str) -> tuple[str, str]:
    """An operator by its name in the network, and where it is used; exporters name the parts that it is made of."""
    with quiet():
        graphs = [program.graph, program.run_decompositions().graph]
    bare = operator.split(".")[1]
    for fits in (lambda target: target == operator, lambda target: bare in target):
        for node in (node for graph in graphs for node in graph.nodes if node.op == "call_function"):
            target = str(node.target).removesuffix(".default")
            if fits(target):
                inside = list((node.meta.get("nn_module_stack") or {}).values())
                path = str(inside[-1][0]).removeprefix("module").strip(".") if inside else ""
                lines = [hit for hit in _LINE.findall(node.meta.get("stack_trace") or "") if not _torchs(hit[0])]
                places = [f"submodule {path}"] if path else []
                places += [f"{lines[-1][0]}:{lines[-1][1]}"] if lines else []
                return target, f" at {', '.join(places)}" if places else ""
    return operator, ""


def _operator(text: str) -> str:
    """The operator that an exporter's words name; empty: none."""
    found = _OPERATOR.search(text)
    operator = next((part for part in found.groups() if part), "") if found else ""
    return operator.replace("::", ".").removesuffix(".default")


def _why(error: BaseException) -> str:
    said = first_line(error)
    operator = _operator(said)
    return said if not operator else f"{operator}: {said}"


def _place(error: BaseException) -> str:
    """The last line of a person's own code that an error passed."""
    told = [(file, int(line)) for file, line, _ in _LINE.findall(str(error)) if not _torchs(file)]
    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(error.__traceback__) if not _torchs(f.filename)]
    own = told or [frame for frame in frames if Path(frame[0]).parent != Path(__file__).parent]
    if not own:
        return "an unknown line"
    file, line = own[-1]
    code = linecache.getline(file, line).strip()
    return f"{file}:{line}" + (f": {code}" if code else "")


def _torchs(file: str) -> bool:
    return "/torch/" in file or file.startswith("<")


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block the exporters' progress, warnings and logs are kept from the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
