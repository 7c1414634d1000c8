"""Checkpoints that are whole or not there: safetensors and JSON in a folder with a manifest of sizes and hashes.

A checkpoint is written to a temporary folder, flushed and renamed, while training goes on. Loading takes the newest one
whose every file agrees with its manifest; a damaged one is passed over, and that is said.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import ranks
from ..errors import CheckpointError
from ..files import replace_folder

MANIFEST = "manifest.json"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: groups of tensors, and facts."""

    groups: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one stage of one run.

    Args:
        folder: where they lie.
        fingerprint: of what they belong to; a checkpoint of something else is refused.
        keep: how many complete ones stay.
        say: where remarks go.
    """

    def __init__(self, folder: Path, fingerprint: str, keep: int = 2, say: Callable[[str], None] = print) -> None:
        self.folder, self.fingerprint, self.keep, self.say = folder, fingerprint, keep, say
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def save(self, step: int, groups: Mapping[str, Tensors], facts: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint (rank 0), after the one before is written; `finish` waits for it.

        Args:
            groups: of tensors that nobody changes any more.

        Raises:
            CheckpointError: the one before couldn't be written; earlier ones are untouched.
        """
        if ranks.rank() != 0:
            return
        self.finish()
        content = json.dumps({"fingerprint": self.fingerprint, **facts})  # now: the history grows meanwhile
        here = {name: {key: x.detach().to("cpu") for key, x in tensors.items()} for name, tensors in groups.items()}
        self._writer = self._writer or ThreadPoolExecutor(1, "checkpoint")
        self._writing = self._writer.submit(self._write, step, here, content)

    def finish(self) -> None:
        """Wait until what `save` began is on disk.

        Raises:
            CheckpointError: it can't be written; earlier ones are untouched.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let a write that is under way end, whatever comes of it."""
        if self._writer is not None:
            self._writer.shutdown()
        self._writer = self._writing = None

    def _write(self, step: int, groups: Mapping[str, Tensors], content: str) -> None:
        with replace_folder(self.folder / f"{step:010d}") as temporary:
            for name, tensors in groups.items():
                save_file(_unshared({key: x.contiguous() for key, x in tensors.items()}),
                          temporary / f"{name}.safetensors")  # fmt: skip
            (temporary / "facts.json").write_text(content)
            files = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps(files))
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None.

        Raises:
            CheckpointError: it belongs to another run.
        """
        if ranks.rank() == 0:
            self._sweep()
        ranks.wait()
        for folder in reversed(self._all()):
            problem = _problem(folder)
            if problem:
                if ranks.rank() == 0:
                    self.say(f"checkpoint {folder} is damaged ({problem}); using the last good one before it")
                continue
            facts = json.loads((folder / "facts.json").read_text())
            if facts.pop("fingerprint") != self.fingerprint:
                raise CheckpointError(f"{folder} is a checkpoint of another config; choose another --out or delete it")
            groups = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
            return Checkpoint(groups, facts)
        return None

    def clear(self) -> None:
        """Remove all, when the stage's result is safe."""
        if ranks.rank() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        ranks.wait()

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*") if path.is_dir() and path.name.isdigit())

    def _sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for pattern in (".*.tmp", ".*.old"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied parameters copied: safetensors stores no aliases."""
    seen: set[int] = set()
    for key, x in tensors.items():
        if x.numel() and x.data_ptr() in seen:
            tensors[key] = x.clone()
        seen.add(tensors[key].data_ptr())
    return tensors


def _digest(path: Path) -> list[Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return [path.stat().st_size, digest.hexdigest()]


def _problem(folder: Path) -> str | None:
    try:
        expected = json.loads((folder / MANIFEST).read_text())
        for name, (size, digest) in expected.items():
            path = folder / name
            if path.stat().st_size != size or _digest(path)[1] != digest:
                return f"{name} doesn't agree with its manifest"
    except (OSError, ValueError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as flat tensors, not copied, and its groups' settings."""
    state = optimizer.state_dict()
    tensors = {f"{number}.{name}": torch.as_tensor(value) for number, entry in state["state"].items()
               for name, value in entry.items() if value is not None}  # fmt: skip
    return tensors, [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, groups: list[dict[str, Any]]) -> None:
    """Put an optimiser where `optimizer_tensors` found it."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    # how the step is computed is this start's choice, and a rate that a recorded step reads keeps its place in memory
    choices = ("fused", "capturable", "foreach")
    own = [{name: group[name] for name in choices if name in group} for group in optimizer.param_groups]
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    _lay_out(optimizer)
    for group, choice, rate in zip(optimizer.param_groups, own, rates, strict=True):
        group.update(choice)
        if isinstance(rate, Tensor):
            group["lr"] = rate.fill_(group["lr"])


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Lay moments out in memory as their parameters are: fused steps walk both as they lie, whatever their strides, and
    files hold them contiguous."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            entry = optimizer.state.get(parameter, {})
            for name, value in entry.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    entry[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
