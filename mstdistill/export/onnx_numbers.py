"""An ONNX model in fewer bytes a number, by onnxruntime's tools; and without what only its makers read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor

# What is computed in int8: products with weights, and what lies between them and only picks or moves numbers. Sums,
# norms and softmax stay in float32: there int8 loses accuracy and gains nothing.
_STATIC = ["Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "MaxPool", "Relu", "Clip", "Reshape", "Flatten",
           "Squeeze", "Unsqueeze", "Transpose"]  # fmt: skip
_DYNAMIC = ["Conv", "Gemm", "MatMul", "Gather"]


def changed(
    model: onnx.ModelProto, quantise: str, calibration: Iterator[Tensor], scratch: Path, name: str
) -> onnx.ModelProto:
    """The model in the wanted numbers; inputs and logits stay as they are.

    Args:
        calibration: batches that int8-static is calibrated on.
        scratch: a folder for what lies between.
        name: of the input.
    """
    if quantise == "none":
        return model
    if quantise == "fp16":
        half: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
        return half
    before, after = scratch / "before.onnx", scratch / "after.onnx"
    onnx.save(model, before)
    if quantise == "int8-dynamic":
        # unsigned: onnxruntime has fast convolutions for it on every processor
        quantize_dynamic(before, after, op_types_to_quantize=_DYNAMIC, weight_type=QuantType.QUInt8)
    else:
        quantize_static(
            str(before), str(after), _Reader(calibration, name), quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_STATIC, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax, extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip
    found = onnx.load(after)
    bare(found)
    _rename(found)
    return found


class _Reader(CalibrationDataReader):
    """Rows as the calibration asks for them."""

    def __init__(self, batches: Iterator[Tensor], name: str) -> None:
        self.name, self.batches = name, batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch.numpy()}


def bare(model: onnx.ModelProto) -> None:
    """Take out comments, traces of the source and the shapes in between, half of a small file."""
    graph = model.graph
    parts: list[Any] = [model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]


def _rename(model: onnx.ModelProto) -> None:
    """Short names for what lies between input and output: a quantised graph has long ones, a tenth of a small file."""
    graph = model.graph
    if any(part.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
           for node in graph.node for part in node.attribute):  # fmt: skip
        return  # inner graphs use outer names
    kept = {value.name for value in (*graph.input, *graph.output)} | {""}
    short: dict[str, str] = {}
    names = _names(kept)

    def new(name: str) -> str:
        if name not in kept and name not in short:
            short[name] = next(names)
        return short.get(name, name)

    for tensor in graph.initializer:
        tensor.name = new(tensor.name)
    for node in graph.node:
        node.name = ""
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]


def _names(taken: set[str]) -> Iterator[str]:
    number = 0
    while True:
        name = np.base_repr(number, 36).lower()
        if name not in taken:
            yield name
        number += 1
