"""Hugging Face models as networks of this package: packed modality tensors in, logits [B, C] out.

Three heads: the model's own classifier; a linear one on the pooled feature; two linear ones on the joined embeddings of
a two-tower model (CLIP, SigLIP, CLAP). The model's submodules are taps under `model.`, the heads under their own names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.decode.processors import Port, Processing
from ..errors import ConfigError

# What a model can do without, where it doesn't know the name.
_OPTIONAL = ("attention_mask", "token_type_ids")
_TOWERS = {"text": "text", "image": "vision", "audio": "audio"}


class HuggingFaceNet(nn.Module):
    """A transformers model with a head.

    Args:
        model: the transformers model.
        ports: how each modality's tensor becomes the model's arguments, in order.
    """

    head = "none"

    def __init__(self, model: nn.Module, ports: Sequence[Port]) -> None:
        super().__init__()
        self.model, self.ports = model, tuple(ports)
        self.processing: tuple[Processing | None, ...] = ()
        self.notes: list[str] = []

    def forward(self, *views: Tensor) -> Tensor:
        """Logits [B, C] of packed views, one a modality."""
        raise NotImplementedError("a head says how features become logits")

    def arguments(self, function: Callable[..., Any], views: Sequence[Tensor]) -> dict[str, Tensor]:
        """A function's named tensors from packed views; what it may lack and doesn't know is left out."""
        if len(views) != len(self.ports):
            raise ValueError(f"{len(views)} modalities given, {len(self.ports)} wanted")
        known = inspect.signature(function).parameters
        named: dict[str, Tensor] = {}
        main = str(self.model.main_input_name)
        for port, view in zip(self.ports, views, strict=True):
            # a tensor that no processor made is the model's main input
            named |= {main: view} if port.kind == "array" else port.unpack(view)
        return {name: x for name, x in named.items() if name in known or name not in _OPTIONAL}

    def sample(self, batch: int = 1) -> list[Tensor]:
        """Tensors that the network can take, on the CPU."""
        return [port.sample(batch) for port in self.ports]

    def describe(self) -> dict[str, Any]:
        """What is needed, beside the config's files, to build this network again; JSON."""
        seconds = [one.max_seconds if one is not None else None for one in self.processing]
        return {"head": self.head, "ports": [asdict(port) for port in self.ports], "seconds": seconds}

    def save_files(self, folder: Path) -> None:
        """Write the model's config and the processors' files."""
        self.model.config.save_pretrained(folder)  # type: ignore[union-attr,operator]
        for processing in self.processing:
            if processing is not None:
                processing.save(folder)


class ClassifierNet(HuggingFaceNet):
    """A model that classifies: its own head."""

    head = "classification"

    def forward(self, *views: Tensor) -> Tensor:
        logits: Tensor = self.model(**self.arguments(self.model.forward, views)).logits
        return logits


class PooledNet(HuggingFaceNet):
    """A model without a head: its pooled feature -> `classifier`.

    The feature is the model's own pooled one, else the mean over tokens that the attention mask lets through.
    """

    head = "pooled"

    def __init__(self, model: nn.Module, ports: Sequence[Port], num_classes: int) -> None:
        super().__init__(model, ports)
        self.classifier = nn.Linear(_width(self, self.pooled), num_classes)

    def pooled(self, *views: Tensor) -> Tensor:
        """Features [B, d]."""
        named = self.arguments(self.model.forward, views)
        output = self.model(**named)
        feature = getattr(output, "pooler_output", None)
        if feature is not None:
            flat: Tensor = feature.flatten(1)
            return flat
        hidden: Tensor = output.last_hidden_state
        if hidden.dim() == 4:  # a map of channels
            return hidden.mean(dim=(2, 3))
        mask = named.get("attention_mask")
        if mask is None or mask.shape[1] != hidden.shape[1]:
            return hidden.mean(dim=1)
        weight = mask.unsqueeze(2).to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)

    def forward(self, *views: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pooled(*views))
        return logits

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "pooler": getattr(self.model, "pooler", None) is not None}


class TwoTowerNet(HuggingFaceNet):
    """A two-tower model: projected embeddings, joined -> `fc1` -> ReLU -> `fc2`. Of one modality: that tower alone."""

    head = "two-tower"

    def __init__(self, model: nn.Module, ports: Sequence[Port], num_classes: int) -> None:
        super().__init__(model, ports)
        kinds = [port.kind for port in ports]
        for kind in kinds:
            if not hasattr(model, f"get_{kind}_features"):
                raise ConfigError(f"{type(model).__name__} has no tower for {kind}; set head: pooled, or another model")
        self._drop_unused(kinds)
        self.joined = nn.Identity()
        width = _width(self, self.embedded)
        self.fc1 = nn.Linear(width, width // len(kinds))
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(width // len(kinds), num_classes)

    def _drop_unused(self, kinds: Sequence[str]) -> None:
        """What takes no part in the logits would be counted, saved and waited for by other processes."""
        for kind, tower in _TOWERS.items():
            for part in (f"{tower}_model", f"{'visual' if kind == 'image' else kind}_projection"):
                if kind not in kinds and hasattr(self.model, part):
                    delattr(self.model, part)

    def embedded(self, *views: Tensor) -> Tensor:
        """Joined embeddings [B, sum of d]."""
        if len(views) != len(self.ports):
            raise ValueError(f"{len(views)} modalities given, {len(self.ports)} wanted")
        parts = []
        for port, view in zip(self.ports, views, strict=True):
            function = getattr(self.model, f"get_{port.kind}_features")
            known = inspect.signature(function).parameters
            output = function(**{k: x for k, x in port.unpack(view).items() if k in known})
            # some models give the embedding, most an output that holds it
            parts.append(output if isinstance(output, Tensor) else output.pooler_output)
        return torch.cat(parts, dim=1)

    def forward(self, *views: Tensor) -> Tensor:
        logits: Tensor = self.fc2(self.act(self.fc1(self.joined(self.embedded(*views)))))
        return logits


@torch.no_grad()
def _width(module: HuggingFaceNet, feature_of: Callable[..., Tensor]) -> int:
    """Features of a sample: how many there are."""
    was_training = module.training
    try:
        return int(feature_of(*module.eval().sample(2)).shape[1])
    finally:
        module.train(was_training)
