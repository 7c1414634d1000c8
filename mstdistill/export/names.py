"""What a student can be exported as, how exact that has to be, and what is refused before torch is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..errors import ConfigError, nearest

# The formats and the quantisations that each knows.
FORMATS: dict[str, tuple[str, ...]] = {
    "safetensors": ("none", "fp16"),
    "onnx": ("none", "fp16", "int8-dynamic", "int8-static"),
    "torch-export": ("none", "fp16", "int8-dynamic", "int8-static"),
    "executorch": ("none", "int8-static"),
}
QUANTISATIONS = ("none", "fp16", "int8-dynamic", "int8-static")
_ENDS = {"safetensors": ".safetensors", "onnx": ".onnx", "torch-export": ".pt2", "executorch": ".pte"}
# Packages beside the project's own, and the extra that brings them.
_NEEDS: dict[str, tuple[str, ...]] = {
    "safetensors": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "torch-export": (), "executorch": ("executorch",),
}  # fmt: skip
_EXTRAS = {"onnx": "export", "torch-export": "torch-int8", "executorch": "executorch"}

# Training rows that int8-static is calibrated on.
CALIBRATE = 256


@dataclass(frozen=True)
class Tolerance:
    """How far an artefact may be from the student.

    Attributes:
        logits: largest difference of a logit, as a part of the student's largest one.
        equal: least share of equal predictions; one row may always differ.
        accuracy: what a split's accuracy may lose; one row may always be lost.
    """

    logits: float
    equal: float
    accuracy: float


# The same for every format: what is lost is lost by the numbers' form, not by the file's.
TOLERANCES = {
    "none": Tolerance(1e-4, 0.999, 0.001),
    "fp16": Tolerance(1e-2, 0.99, 0.005),
    "int8-dynamic": Tolerance(0.3, 0.95, 0.01),
    "int8-static": Tolerance(0.3, 0.95, 0.01),
}


@dataclass(frozen=True)
class Kind:
    """A format in a quantisation."""

    form: str
    quantise: str

    @property
    def title(self) -> str:
        """As tables have it: onnx int8-static."""
        return self.form if self.quantise == "none" else f"{self.form} {self.quantise}"

    @property
    def file(self) -> str:
        """Where it lies in the exported folder; the plain weights beside config.json, where they are loaded from."""
        name = ("model" if self.quantise == "none" else f"model-{self.quantise}") + _ENDS[self.form]
        return name if self.form == "safetensors" else f"{self.form}/{name}"


def kinds(formats: Sequence[str], quantise: Sequence[str]) -> list[Kind]:
    """The pairs that exist of those asked for.

    Raises:
        ConfigError: an unknown name, one that no asked format knows, or nothing asked for.
    """
    for what, given, known in (("format", formats, FORMATS), ("quantisation", quantise, QUANTISATIONS)):
        if not given:
            raise ConfigError(f"no {what} given; known: {', '.join(known)}")
        for name in given:
            if name not in known:
                raise ConfigError(f"unknown {what} {name!r}; {nearest(name, known)}")
    formats, quantise = list(dict.fromkeys(formats)), list(dict.fromkeys(quantise))
    for name in quantise:
        if not any(name in FORMATS[one] for one in formats):
            able = ", ".join(one for one, known in FORMATS.items() if name in known)
            raise ConfigError(f"{name} isn't known to {', '.join(formats)}; it is to {able}")
    for one in formats:
        if not any(name in FORMATS[one] for name in quantise):
            raise ConfigError(f"{one} knows {', '.join(FORMATS[one])}, not {', '.join(quantise)}")
    return [Kind(one, name) for one in formats for name in quantise if name in FORMATS[one]]


def left_out(formats: Sequence[str], quantise: Sequence[str]) -> list[str]:
    """The titles of asked pairs that don't exist."""
    return [Kind(one, name).title for one in dict.fromkeys(formats) for name in dict.fromkeys(quantise)
            if name not in FORMATS[one]]  # fmt: skip


def check_request(
    out: Path, formats: Sequence[str], quantise: Sequence[str], calibrate: int, rows: int | None = None
) -> list[Kind]:
    """What is to be made.

    Args:
        out: a new folder.
        calibrate: rows to calibrate on.
        rows: that artefacts are tried on; None: all.

    Raises:
        ConfigError: names that nothing has, a folder that is there, a package that isn't, no rows.
    """
    wanted = kinds(formats, quantise)
    if out.exists():
        raise ConfigError(f"{out} is there already; choose another folder")
    if calibrate < 1 and any(kind.quantise == "int8-static" for kind in wanted):
        raise ConfigError(f"int8-static is calibrated on training rows; {calibrate} are none; give at least 1")
    if rows is not None and rows < 1:
        raise ConfigError(f"artefacts are checked on rows; {rows} are none; give at least 1")
    for kind in wanted:
        needed = list(_NEEDS[kind.form])
        if kind.quantise.startswith("int8") and kind.form != "onnx":
            needed.append("torchao")
        missing = [name for name in needed if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"{kind.title} needs {', '.join(missing)}: pip install 'mstdistill[{_EXTRAS[kind.form]}]'"
            )
    return wanted
