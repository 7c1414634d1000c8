"""Building Hugging Face models from settings, a hub id or folder and the modalities' ports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import ModelSettings
from ..data.decode.processors import Port, Processing
from ..errors import ConfigError, nearest
from ..hub import fetching, located
from .huggingface import ClassifierNet, HuggingFaceNet, PooledNet, TwoTowerNet

_CLASSIFIERS = {"image": "ForImageClassification", "audio": "ForAudioClassification",
                "text": "ForSequenceClassification"}  # fmt: skip
# Under this key a folder that transformers takes tells what the student is.
OURS = "mstdistill"
# Where more of a model's tensors than this are missing from its weights, they are weights of something else.
_LARGEST_MISSING = 0.5


def read_config(settings: ModelSettings, owner: str, num_classes: int | None = None) -> Any:
    """The transformers config of a model, with the recipe's changes.

    Raises:
        ConfigError: it can't be had, or an option that it doesn't know.
    """
    from transformers import AutoConfig

    assert settings.hf is not None
    changes = dict(settings.options) | ({} if num_classes is None else {"num_labels": num_classes})
    with fetching(owner, settings.hf, "config"):
        config, unused = AutoConfig.from_pretrained(
            located(settings.hf), revision=settings.revision, trust_remote_code=settings.trust_remote_code,
            return_unused_kwargs=True, **changes,
        )  # fmt: skip
    for name in ("layerdrop", "encoder_layerdrop"):
        if name not in settings.options and getattr(config, name, None):
            setattr(config, name, 0.0)  # a layer that one process drops, the others would wait for
    # some architectures count classes by their own rules
    unused.pop("num_labels", None)
    for key in settings.options:
        if key in unused:
            raise ConfigError(f"{owner}: the config of {settings.hf} has no {key!r}; {nearest(key, config.to_dict())}")
    return config


def build_pretrained(
    settings: ModelSettings, num_classes: int, processing: Sequence[Processing | None], ports: Sequence[Port],
    owner: str, frozen: bool = False,
) -> HuggingFaceNet:  # fmt: skip
    """A model with pretrained weights in float32, or random ones from torch's global generator.

    Args:
        processing: each modality's processor; None for tensors.
        frozen: it must be ready as it is: a new head is a mistake then.

    Raises:
        ConfigError: it can't be had, doesn't fit its processor, or is to teach with a head that is new.
    """
    config = read_config(settings, owner, num_classes)
    head = _head(settings, config, owner)
    _check_fit(config, processing, ports, owner)
    if frozen and not settings.weights:
        _check_ready(settings, head, num_classes, owner)
    for one in processing:
        if one is not None and one.kind == "text" and getattr(config, "pad_token_id", 0) is None:
            config.pad_token_id = one.tool.pad_token_id  # where a classifier of a language model looks for the end
    model, missing = _load(settings, config, _auto_class(head, settings, config, ports, owner), owner)
    notes = []
    if head == "pooled" and any("pooler." in name for name in missing):
        model.pooler = None  # its pooled feature would be of random weights
        missing = [name for name in missing if "pooler." not in name]
        notes.append(f"{owner}: {settings.hf} has no weights for its pooler; the mean over the tokens is used")
    if missing:
        notes.append(f"{owner}: new, at random: {', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}")
    net = _with_head(model, head, ports, num_classes, owner)
    net.processing, net.notes = tuple(processing), notes
    if not frozen:
        _freeze_idle(net)
    if settings.gradient_checkpointing:
        _save_memory(net, owner)
    return net


def rebuild(
    folder: Path, num_classes: int, facts: Mapping[str, Any], trust_remote_code: bool = False
) -> HuggingFaceNet:
    """A network as `HuggingFaceNet.describe` and `save_files` left it, with weights still to be loaded.

    Args:
        folder: where config and processor lie.

    Raises:
        ConfigError: its config is missing or damaged.
    """
    ports = [Port(p["kind"], tuple(p["names"]), tuple(p["shape"]), p["stacked"]) for p in facts["ports"]]
    settings = ModelSettings(hf=str(folder), pretrained=False, head=facts["head"], trust_remote_code=trust_remote_code)
    config = read_config(settings, "student", num_classes)
    if hasattr(config, OURS):
        delattr(config, OURS)  # of the folder, not of the model
    model, _ = _load(settings, config, _auto_class(facts["head"], settings, config, ports, "student"), "student")
    if facts.get("pooler") is False and getattr(model, "pooler", None) is not None:
        model.pooler = None
    net = _with_head(model, facts["head"], ports, num_classes, "student")
    net.processing = tuple(
        None if port.kind == "array" else Processing(
            port.kind, str(folder), "student", trust_remote_code=trust_remote_code,
            max_length=port.shape[-1] if port.kind == "text" else None, max_seconds=seconds or 10.0,
        ) for port, seconds in zip(ports, facts["seconds"], strict=True)
    )  # fmt: skip
    return net


def _head(settings: ModelSettings, config: Any, owner: str) -> str:
    audio = getattr(config, "audio_config", None)
    if getattr(audio, "enable_fusion", False):
        raise ConfigError(f"{owner}: {settings.hf} is a fused CLAP, which isn't supported; take an unfused one, for "
                          "example laion/clap-htsat-unfused")  # fmt: skip
    if settings.head != "auto":
        return settings.head
    tower = getattr(config, "vision_config", None) or audio
    if getattr(config, "text_config", None) is not None and tower is not None:
        return "two-tower"
    names = getattr(config, "architectures", None) or []
    if any(name.endswith(tuple(_CLASSIFIERS.values())) for name in names):
        return "classification"
    return "pooled"


def _auto_class(head: str, settings: ModelSettings, config: Any, ports: Sequence[Port], owner: str) -> str:
    if head != "classification":
        return "AutoModel"
    kinds = [port.kind for port in ports if port.kind != "array"]
    if len(kinds) > 1:
        raise ConfigError(f"{owner}: head classification takes one modality, not {', '.join(kinds)}; set head: pooled")
    if kinds:
        return f"AutoModel{_CLASSIFIERS[kinds[0]]}"
    names = getattr(config, "architectures", None) or []
    ending = next((e for e in _CLASSIFIERS.values() if any(n.endswith(e) for n in names)), _CLASSIFIERS["image"])
    return f"AutoModel{ending}"


def _load(settings: ModelSettings, config: Any, auto_class: str, owner: str) -> tuple[Any, list[str]]:
    """The transformers model in float32, and which of its tensors are new."""
    import transformers

    assert settings.hf is not None
    loader = getattr(transformers, auto_class)
    missing: list[str] = []
    with fetching(owner, settings.hf, "model"):
        if settings.pretrained:
            model, info = loader.from_pretrained(
                located(settings.hf), config=config, revision=settings.revision, dtype=torch.float32,
                trust_remote_code=settings.trust_remote_code, ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
            missing = sorted({*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])})
        else:
            model = loader.from_config(config, trust_remote_code=settings.trust_remote_code)
    model = model.float()
    if getattr(config, "is_encoder_decoder", False) and auto_class == "AutoModel":
        model = model.get_encoder()
        own = set(dict(model.named_parameters()))
        missing = [name for name in missing if name.removeprefix("encoder.") in own]
    if len(missing) > _LARGEST_MISSING * len(list(model.parameters())):
        raise ConfigError(f"{owner}: the weights in {settings.hf} lack {missing[0]!r} and {len(missing) - 1} others: "
                          "they are of another architecture")  # fmt: skip
    return model.train(), missing


def _with_head(model: nn.Module, head: str, ports: Sequence[Port], num_classes: int, owner: str) -> HuggingFaceNet:
    try:
        if head == "classification":
            net: HuggingFaceNet = ClassifierNet(model, ports)
        else:
            net = (TwoTowerNet if head == "two-tower" else PooledNet)(model, ports, num_classes)
        with torch.no_grad():
            net.eval()(*net.sample(2))
        return net.train()
    except ConfigError as error:
        raise ConfigError(f"{owner}: {error}") from None
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        shapes = {port.kind: list(port.shape) for port in ports}
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{owner}: the model can't take what its processor makes, {shapes}: {line}") from None


def _check_fit(config: Any, processing: Sequence[Processing | None], ports: Sequence[Port], owner: str) -> None:
    """A tokenizer of another model gives numbers that an embedding doesn't have: on a GPU, a crash without a word."""
    text = getattr(config, "text_config", None) or config
    for one, port in zip(processing, ports, strict=True):
        if one is None or one.kind != "text":
            continue
        words, known = len(one.tool), getattr(text, "vocab_size", None)
        if known is not None and words > known:
            raise ConfigError(f"{owner}: the tokenizer of {one.source} has {words:,} words, the model {known:,}: it is "
                              "of another model; set `processor`")  # fmt: skip
        places = getattr(text, "max_position_embeddings", None)
        if isinstance(places, int) and 0 < places < port.shape[-1]:
            raise ConfigError(f"{owner}: texts are padded to {port.shape[-1]} tokens, the model takes {places}; set "
                              f"max_length: {places}")  # fmt: skip


def _check_ready(settings: ModelSettings, head: str, num_classes: int, owner: str) -> None:
    if head != "classification" or not settings.pretrained:
        raise ConfigError(f"{owner}: frozen, but its head is new and would stay at random; give its trained weights "
                          "(weights: FILE), or leave out frozen")  # fmt: skip
    saved = read_config(settings, owner)
    if saved.num_labels != num_classes:
        raise ConfigError(f"{owner}: frozen, but {settings.hf} knows {saved.num_labels} classes and the task has "
                          f"{num_classes}; leave out frozen, so that it learns them")  # fmt: skip


def _freeze_idle(net: HuggingFaceNet) -> None:
    """Parameters that take no part in the logits don't learn: processes that train together would wait for them."""
    net.eval()  # nothing is dropped
    with torch.enable_grad():
        net(*net.sample(2)).sum().backward()
    for parameter in net.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
    net.zero_grad(set_to_none=True)
    net.train()


def _save_memory(net: HuggingFaceNet, owner: str) -> None:
    """Recompute activations in the backward pass; of effect in training mode only."""
    model: Any = net.model
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError:
        raise ConfigError(f"{owner}: {type(model).__name__} has no gradient checkpointing; leave it out") from None
    # of no use without re-entrance, and it would make frozen teachers keep their activations
    if getattr(model, "_require_grads_hooks", None) or hasattr(model, "_require_grads_hook"):
        model.disable_input_require_grads()
