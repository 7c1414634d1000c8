"""ONNX by torch's exporter; a folder that needs onnxruntime and numpy alone."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor

from ..errors import ConfigError, first_line
from . import onnx_numbers
from .tracing import Subject, quiet, refuse_operator

INPUT, OUTPUT, KEY = "input", "logits", "mstdistill"
# A protobuf holds so many bytes.
_LARGEST = 2**31

_RUN = '''"""Classes of a batch: python run.py BATCH.npy [MODEL.onnx]; needs onnxruntime and numpy alone."""
import json, pathlib, sys
import numpy, onnxruntime
path = sys.argv[2] if len(sys.argv) > 2 else str(pathlib.Path(__file__).with_name("{file}"))
model = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
facts = json.loads(model.get_modelmeta().custom_metadata_map["mstdistill"])
batch = numpy.load(sys.argv[1]).astype(facts["preprocessing"]["input_type"])  # [batch, {shape}]
logits = model.run(None, {{"input": batch}})[0]
names = numpy.array(facts.get("class_names") or range(logits.shape[1]))
print(json.dumps([names[row > 0 if facts.get("multilabel") else row.argmax(axis=0)].tolist() for row in logits]))
'''


def write(subject: Subject, quantise: str, file: Path) -> None:
    """Write the file; its metadata hold the student's config and the classes' names.

    Raises:
        ConfigError: an operator that ONNX lacks, with its place; or too large for one file.
    """
    name = type(subject.module).__name__
    weight = sum(x.numel() * x.element_size() for x in subject.module.state_dict().values() if isinstance(x, Tensor))
    if weight >= _LARGEST:
        raise ConfigError(f"onnx: {name} has {weight / 1e9:.1f} GB of weights; one file holds 2.1 GB")
    if "onnx" not in subject.kept:
        subject.kept["onnx"] = _converted(subject, name).SerializeToString()
    model = onnx.load_from_string(subject.kept["onnx"])
    with tempfile.TemporaryDirectory() as scratch, quiet():
        try:
            model = onnx_numbers.changed(model, quantise, subject.calibrating(), Path(scratch), INPUT)
        except ConfigError:
            raise
        except Exception as error:  # the quantiser's own checks are of many kinds
            raise ConfigError(f"onnx: {name} can't be made {quantise} ({first_line(error)})") from None
    facts = {**subject.config, "quantise": quantise}
    onnx.helper.set_model_props(model, {KEY: json.dumps(facts, separators=(",", ":"))})
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, file)


def _converted(subject: Subject, name: str) -> onnx.ModelProto:
    program = subject.traced("onnx")
    try:
        with quiet():
            made = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
            assert made is not None
            model = made.model_proto
    except Exception as error:  # the exporter's and the operators' own
        raise refuse_operator(program, "onnx", name, error) from None
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx_numbers.bare(model)
    return model


def opened(file: Path, subject: Subject) -> Callable[[Tensor], Tensor]:
    """The file, run by onnxruntime with as many threads as torch has.

    Raises:
        ConfigError: onnxruntime has no kernel for an operator of it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # waiting threads that spin would take the cores from what is timed beside it
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConfigError(f"onnx: onnxruntime can't run {file.name} ({first_line(error)})") from None

    def run(view: Tensor) -> Tensor:
        logits: Any = session.run(None, {INPUT: view.numpy()})[0]
        return torch.from_numpy(logits)

    return run


def finish(folder: Path, subject: Subject) -> None:
    """Write the config and the ten lines that run the files."""
    (folder / "config.json").write_text(json.dumps(subject.config, indent=1))
    first = min((path.name for path in folder.glob("*.onnx")), key=len)
    shape = ", ".join(map(str, subject.example.shape[1:]))
    (folder / "run.py").write_text(_RUN.format(file=first, shape=shape))
