"""int8 of a traced network, by torchao: each runtime's quantiser knows what its kernels take."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram

from ..errors import ConfigError, first_line
from .tracing import Subject, quiet, trace

with quiet():  # importing registers the operators that quantised graphs are made of
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


def for_torch(subject: Subject, dynamic: bool) -> ExportedProgram:
    """For Inductor's int8 kernels on x86; other processors run the same graph."""
    with quiet():
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        quantiser = x86.X86InductorQuantizer()
        quantiser.set_global(x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
    return _quantised(subject, quantiser, "torch-export", None, dynamic)


def for_executorch(subject: Subject, most: int) -> ExportedProgram:
    """For XNNPACK's int8 kernels."""
    with quiet():
        from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack

        quantiser = xnnpack.XNNPACKQuantizer()
        quantiser.set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    return _quantised(subject, quantiser, "executorch", most)


def _quantised(subject: Subject, quantiser: Any, form: str, most: int | None, dynamic: bool = False) -> ExportedProgram:
    """Observe the calibration rows, then convert; a dynamic quantiser sees one batch, for shapes alone.

    Raises:
        ConfigError: it can't be traced or quantised.
    """
    name = type(subject.module).__name__
    program = subject.traced(form, most=most)
    try:
        with quiet(), torch.no_grad():
            prepared = prepare_pt2e(program.module(), quantiser)
            for raw in [subject.example] if dynamic else subject.calibrating():
                prepared(raw)
            converted = convert_pt2e(prepared, fold_quantize=True)
    except Exception as error:  # quantisers fail in many ways
        raise ConfigError(f"{form}: {name} can't be quantised ({first_line(error)})") from None
    return trace(converted, subject.example, form, name, most)
