"""Hugging Face models small enough for a test, with their processors, in local folders; and raw data sets for them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

CLASSES = ("circle", "stripe", "plain")
_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "picture", "of", "round", "lined", "empty", "thing")
_SAYINGS = ("the picture of a round thing", "a lined thing", "the empty picture of the thing")
RATE = 16000


def save(model: Any, folder: Path, *tools: Any) -> str:
    model.save_pretrained(folder)
    for tool in tools:
        tool.save_pretrained(folder)
    return str(folder)


def words(folder: Path) -> Any:
    """A WordPiece tokenizer of a dozen words."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(_WORDS))
    return transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=16)


def letters(folder: Path) -> Any:
    """CLIP's tokenizer, of single letters."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    found += [f"{letter}</w>" for letter in found] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(found)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)


def vit(folder: Path, classes: int = 5) -> str:
    """A picture classifier, of other classes than the data's."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48,
                                    image_size=32, patch_size=8, num_labels=classes)  # fmt: skip
    tool = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    return save(transformers.ViTForImageClassification(config), folder, tool)


def bert(folder: Path, classifier: bool = False, layers: int = 9, vocabulary: int = len(_WORDS)) -> str:
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=vocabulary, hidden_size=24, num_hidden_layers=layers,
                                     num_attention_heads=3, intermediate_size=48, max_position_embeddings=32,
                                     num_labels=3)  # fmt: skip
    form = transformers.BertForSequenceClassification if classifier else transformers.BertModel
    return save(form(config), folder, words(folder))


def clip(folder: Path) -> str:
    torch.manual_seed(2)
    tokenizer = letters(folder)
    text = {"vocab_size": len(tokenizer), "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
            "intermediate_size": 48, "max_position_embeddings": 24, "eos_token_id": len(tokenizer) - 1,
            "bos_token_id": len(tokenizer) - 2, "pad_token_id": len(tokenizer) - 1}  # fmt: skip
    vision = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    tool = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save(transformers.CLIPModel(config), folder, tool, tokenizer)


def ast(folder: Path) -> str:
    """A sound classifier on log-mel pictures of 64 frames."""
    torch.manual_seed(3)
    config = transformers.ASTConfig(hidden_size=24, num_hidden_layers=9, num_attention_heads=3, intermediate_size=48,
                                    patch_size=8, frequency_stride=8, time_stride=8, max_length=64, num_mel_bins=32,
                                    num_labels=7)  # fmt: skip
    tool = transformers.ASTFeatureExtractor(num_mel_bins=32, max_length=64, sampling_rate=RATE)
    return save(transformers.ASTForAudioClassification(config), folder, tool)


def clap(folder: Path, fused: bool = False) -> str:
    torch.manual_seed(4)
    audio = {"window_size": 4, "num_mel_bins": 16, "spec_size": 64, "patch_size": 4, "patch_stride": [4, 4],
             "hidden_size": 16, "patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [2, 2],
             "num_hidden_layers": 2, "enable_fusion": fused, "num_classes": 3}  # fmt: skip
    text = {"vocab_size": len(_WORDS), "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3,
            "intermediate_size": 48, "max_position_embeddings": 40, "projection_dim": 12}  # fmt: skip
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
    cut = "fusion" if fused else "rand_trunc"
    tool = transformers.ClapFeatureExtractor(feature_size=16, sampling_rate=RATE, hop_length=160, fft_window_size=512,
                                             max_length_s=1, truncation=cut)  # fmt: skip
    return save(transformers.ClapModel(config), folder, tool, words(folder))


def rows(count: int, seed: int = 0, sound: bool = False) -> dict[str, list[Any]]:
    """Learnable instances: noisy pictures of three kinds, said in words or as tones."""
    from PIL import Image

    g = np.random.default_rng(seed)
    label = g.integers(3, size=count)
    y, x = np.mgrid[:40, :36]
    shapes = [((y - 20) ** 2 + (x - 18) ** 2 < 120), (x // 4 % 2 == 0), np.zeros_like(x, bool)]
    found: dict[str, list[Any]] = {"image": [], "label": label.tolist()}
    for one in label:
        picture = 90 + 70 * shapes[one][..., None] + 45 * g.standard_normal((40, 36, 3))
        found["image"].append(Image.fromarray(picture.clip(0, 255).astype(np.uint8)))
    if sound:
        found["audio"] = [{"bytes": tone(300 * (1 + 2 * one), g), "path": None} for one in label]
    else:
        found["text"] = [_SAYINGS[one] for one in label]
    return found


def tone(pitch: float, g: np.random.Generator) -> bytes:
    """A wav file of half a second."""
    from scipy.io import wavfile

    seconds = np.arange(RATE // 2) / RATE
    wave = 0.4 * np.sin(2 * np.pi * pitch * seconds) + 0.05 * g.standard_normal(len(seconds))
    file = io.BytesIO()
    wavfile.write(file, RATE, (wave * 32000).clip(-32768, 32767).astype(np.int16))
    return file.getvalue()


def data_set(folder: Path, count: int = 90, sound: bool = False, splits: bool = False) -> str:
    """A `datasets` folder of raw columns."""
    import datasets

    features: dict[str, Any] = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    file = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features |= {"audio": file} if sound else {"text": datasets.Value("string")}
    datasets.disable_progress_bars()

    def make(count: int, seed: int) -> Any:
        made = datasets.Dataset.from_dict(rows(count, seed, sound), features=datasets.Features(features))
        # the column's own way of taking sounds in needs a decoder that isn't installed everywhere
        return made.cast_column("audio", datasets.Audio()) if sound else made

    whole = make(count, 0)
    if splits:
        whole = datasets.DatasetDict({"train": make(count, 0), "dev": make(count // 3, 1), "test": make(count // 3, 2)})
    whole.save_to_disk(str(folder))
    return str(folder)
