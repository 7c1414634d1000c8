"""Where masks can sit in a network: its features, what a mask costs at each, and lines for a recipe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor, nn

from ..backbones.catalogue import backbones, build
from ..config import ModelSettings
from ..data.decode.processors import Port
from ..errors import ConfigError
from ..teachers.mask import MaskPlan, plan_mask
from ..teachers.tap import discover


@dataclass
class Network:
    """A network with what it takes.

    Attributes:
        source: the recipe's key and value for it.
        modalities: names for its inputs.
    """

    name: str
    source: tuple[str, str]
    module: nn.Module
    modalities: tuple[str, ...]
    inputs: dict[str, Tensor]

    def features(self) -> dict[str, tuple[int, ...]]:
        """Taps in the order of the network, with their features' shapes."""
        shapes = discover(self.module, self.inputs, list(self.inputs), None, self.name)
        return {name: shapes[name] for name, _ in self.module.named_modules() if name in shapes}


def of_backbone(name: str, num_classes: int) -> Network:
    """A registered backbone."""
    module = build(name, num_classes)
    inputs = {f"input{i}": torch.zeros(2, *shape) for i, shape in enumerate(backbones()[name].inputs)}
    return Network(name, ("backbone", name), module, tuple(inputs), inputs)


def of_huggingface(source: str, num_classes: int) -> Network:
    """A Hugging Face model of random weights, with inputs as its processors make them.

    Raises:
        ConfigError: its config or its processors can't be had.
    """
    from ..backbones.pretrained import build_pretrained, read_config
    from ..material import processing_of

    settings = ModelSettings(hf=source, pretrained=False)
    config = read_config(settings, "model")
    ports: dict[str, Port] = {}
    processing = []
    for kind in _kinds(config):
        one = processing_of(settings, kind, "model")
        assert one is not None
        try:
            ports[kind] = one.port()
        except ConfigError:
            if getattr(config, "text_config", None) is not None:
                raise
            continue  # a model of one modality: the next kind
        processing.append(one)
        if getattr(config, "text_config", None) is None:
            break
    if not ports:
        raise ConfigError(f"{source}: no tokenizer, image processor or feature extractor found beside the model")
    module = build_pretrained(settings, num_classes, processing, list(ports.values()), "model")
    inputs = {kind: port.sample(2) for kind, port in ports.items()}
    return Network(source, ("hf", source), module, tuple(ports), inputs)


def _kinds(config: object) -> tuple[str, ...]:
    """Modalities of a two-tower model; of another one, what it may be, the likeliest first."""
    if getattr(config, "text_config", None) is not None:
        return ("audio" if getattr(config, "audio_config", None) is not None else "image", "text")
    if getattr(config, "vocab_size", None) and not getattr(config, "num_mel_bins", None):
        return ("text", "audio", "image")
    return ("audio", "image") if getattr(config, "num_mel_bins", None) else ("image", "audio", "text")


def taps_table(network: Network, heads: int, hidden_dim_factor: int) -> Table:
    """Every tap that a mask fits; of numbered blocks the block, not its parts. "tokens": a feature per token."""
    inner = any(_inside_block(name) for name, _ in network.module.named_modules())
    caption = "the parts of numbered blocks are taps as well" if inner else None
    table = Table(title=f"taps of {network.name}", title_justify="left", caption=caption, caption_justify="left")
    table.add_column("tap", overflow="fold")
    for title in ("feature", "mask", "parameters", "with Adam"):
        table.add_column(title, no_wrap=True, justify="left" if title in ("feature", "mask") else "right")
    for name, shape in network.features().items():
        plan = _plan(name, shape, heads, hidden_dim_factor)
        if plan is None or _inside_block(name):
            continue
        table.add_row(name, "x".join(map(str, shape)), f"{plan.kind}, h={plan.hidden}", f"{plan.parameters:,}",
                      f"{plan.parameters * 16 / 1e6:,.1f} MB")  # fmt: skip
    return table


def recipe_lines(network: Network) -> str:
    """A teacher for a recipe: the joined embeddings, or a block at two thirds and a feature near the end."""
    found = {name: shape for name, shape in network.features().items() if _plan(name, shape, 3, 2) is not None}
    if "joined" in found:
        taps = ["joined", "fc1"]
    else:
        blocks = [name for name in found if name.rsplit(".", 1)[-1].isdigit() and not _inside_block(name)]
        logits = next(reversed(found.values()))
        ends = [name for name, shape in found.items()
                if len(shape) == 1 and shape != logits and not _inside_block(name)]  # fmt: skip
        taps = ([blocks[len(blocks) * 2 // 3]] if blocks else []) + ends[-1 if blocks else -2 :]
    key, value = network.source
    return (
        f"      - name: teacher\n        {key}: {value}\n        modalities: [{', '.join(network.modalities)}]\n"
        f"        taps: [{', '.join(taps)}]\nmask: {{hidden: 12}}"
    )


def _inside_block(name: str) -> bool:
    return "." in name and any(part.isdigit() for part in name.split(".")[:-1])


def _plan(name: str, shape: tuple[int, ...], heads: int, hidden_dim_factor: int) -> MaskPlan | None:
    try:
        return plan_mask(name, shape, heads, hidden_dim_factor)
    except ConfigError:
        return None
