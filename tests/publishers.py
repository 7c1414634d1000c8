"""Miniature raw data in the publishers' own file formats and folders: what the loading code is tested on."""

from __future__ import annotations

import csv
import gzip
import pickle
import struct
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import wavfile


def write_video(
    path: Path, frames: int, size: tuple[int, int], seed: int, rate: int = 30, sound: np.ndarray | None = None
) -> None:  # fmt: skip
    """An mp4 (H.264, AAC) of a coloured square that wanders over noise; size is (height, width)."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    ground = generator.integers(0, 60, (*size, 3), dtype=np.uint8)
    colour = generator.integers(120, 255, 3, dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = size[0], size[1], "yuv420p"
        voice = container.add_stream("aac", rate=16000, layout="mono") if sound is not None else None
        for i in range(frames):
            image = ground.copy()
            top, left = (i * 2) % (size[0] // 2), (i * 3) % (size[1] // 2)
            image[top : top + size[0] // 3, left : left + size[1] // 3] = colour
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        container.mux(stream.encode())
        if voice is not None and sound is not None:
            _mux_sound(container, voice, sound)


def _mux_sound(container: Any, voice: Any, sound: np.ndarray) -> None:
    import av

    for start in range(0, len(sound) - 1023, 1024):
        block = av.AudioFrame.from_ndarray(sound[None, start : start + 1024].astype(np.float32), "fltp", "mono")
        block.sample_rate, block.pts, block.time_base = 16000, start, Fraction(1, 16000)
        container.mux(voice.encode(block))
    container.mux(voice.encode())


def tone(seconds: float, rate: int, pitch: float, seed: int) -> np.ndarray:
    """A tone with overtones and noise, float in [-1, 1]."""
    time = np.arange(int(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in (1, 2, 3)) * 0.3
    return wave + 0.02 * np.random.default_rng(seed).standard_normal(len(time))


def write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    """16-bit PCM."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate, (np.clip(samples, -1, 1) * 32767).astype(np.int16))


def write_idx(path: Path, data: np.ndarray) -> None:
    """MNIST's file format, gzipped."""
    head = b"\0\0\x08" + bytes([data.ndim]) + struct.pack(f">{data.ndim}I", *data.shape)
    with gzip.open(path, "wb") as file:
        file.write(head + data.astype(np.uint8).tobytes())


def mnist(root: Path, images: int = 280) -> Path:
    """The test images and labels, as published."""
    root.mkdir(parents=True)
    write_idx(root / "t10k-images-idx3-ubyte.gz", np.random.default_rng(0).integers(0, 256, (images, 28, 28)))
    write_idx(root / "t10k-labels-idx1-ubyte.gz", np.arange(images) % 10)
    return root


def fsdd(root: Path) -> Path:
    """Free Spoken Digit recordings: a take of each digit by four speakers."""
    generator = np.random.default_rng(0)
    for digit in range(10):
        for speaker in ("jackson", "nicolas", "theo", "yweweler"):
            write_wav(root / f"{digit}_{speaker}_0.wav", generator.standard_normal(3000) / 4, 8000)
    return root


def ravdess(root: Path, clips: int = 24, size: tuple[int, int] = (72, 128)) -> Path:
    """Actors' folders with pairs of an mp4 and a wav; emotions in turn, one song that doesn't belong."""
    for i in range(clips):
        emotion, actor = i % 8 + 1, i // 16 + 1
        fields = f"01-{emotion:02d}-{1 + (i // 8) % 2:02d}-01-01-{actor:02d}"
        folder = f"Actor_{actor:02d}"
        write_video(root / "Video_Speech" / folder / f"01-{fields}.mp4", 100 + i % 20, size, seed=i)
        samples = tone(3.3 + 0.05 * (i % 12), 48000, 110 + 40 * emotion, seed=i)
        write_wav(root / "Audio_Speech" / folder / f"03-{fields}.wav", samples, 48000)
    write_wav(root / "Audio_Song" / "Actor_01" / "03-02-01-01-01-01-01.wav", tone(1.0, 48000, 200, 0), 48000)
    return root


def vggsound_clips(root: Path, clips: int = 24, classes: int = 4) -> Path:
    """VGGSound's clips (mp4 with sound) and the AVEL list; one listed clip has no file."""
    rows = []
    for i in range(clips):
        name = f"Clip{i:07d}_{i * 10:06d}"
        sound = tone(10.0, 16000, 150 + 200 * (i % classes), seed=i)
        write_video(root / "videos" / f"{name}.mp4", 41, (48, 64), seed=i % classes, rate=4, sound=sound)
        rows.append((f"kind {i % classes}", name, ("train", "train", "val", "test")[i % 4]))
    _avel_list(root, [*rows, ("kind 0", "Gone0000000_000000", "train")])
    return root


def vggsound_features(root: Path, clips: int = 40, classes: int = 4) -> Path:
    """The AVEL authors' extracted features: a zipped pickle a clip and modality."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((classes, 128 + 512)).astype(np.float32)
    rows = []
    for i in range(clips):
        name, centre = f"Clip{i:07d}", centres[i % classes]
        audio = centre[:128] + generator.standard_normal((10, 128)).astype(np.float32)
        visual = centre[128:] + generator.standard_normal((10, 7, 7, 512)).astype(np.float32)
        for kind, values in (("audio", audio), ("video", visual.astype(np.float32))):
            path = root / "feature" / kind / "zip" / f"{name}.zip"
            path.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(f"{name}.pkl", pickle.dumps(values))
        rows.append((f"kind {i % classes}", name, ("train", "train", "val", "test")[i % 4]))
    _avel_list(root, rows)
    return root


def _avel_list(root: Path, rows: list[tuple[str, str, str]]) -> None:
    with (root / "vggsound-avel50k.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("category", "video_id", "onset", "offset", "split"))
        writer.writerows((category, name, 0, 10, split) for category, name, split in rows)


CRISIS_CLASSES = (
    "not_humanitarian", "affected_individuals", "infrastructure_and_utility_damage", "injured_or_dead_people",
    "missing_or_found_people", "rescue_volunteering_or_donation_effort", "vehicle_damage", "other_relevant_information",
)  # fmt: skip
CRISIS_COLUMNS = ("event_name", "tweet_id", "image_id", "tweet_text", "image", "label", "label_text", "label_image",
                  "label_text_image")  # fmt: skip


def crisismmd(root: Path, tweets: int = 48) -> Path:
    """The archive's pictures and tables: jpg in RGB, grey and CMYK, a png with a palette; a tweet with two pictures."""
    from PIL import Image

    generator = np.random.default_rng(0)
    rows: dict[str, list[tuple[str, ...]]] = {"train": [], "dev": [], "test": []}
    for i in range(tweets):
        label = CRISIS_CLASSES[i % 8]
        name = f"data_image/hurricane_irma/{i % 3}_9_2017/{900000000000000000 + i}_0.{'png' if i % 8 == 7 else 'jpg'}"
        path = root / "CrisisMMD_v2.0" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = np.array([30 * (i % 8), 255 - 30 * (i % 8), 128])
        pixels = np.clip(colour + generator.integers(-40, 40, (60 + i, 90, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).convert(("RGB", "L", "CMYK", "RGB")[i % 4] if i % 8 != 7 else "P").save(path)
        text = f"RT @user{i}: It's {label.replace('_', ' ')}\\u2026 can't wait \U0001f622 #Irma https://t.co/x{i}"
        part = ("train", "train", "train", "dev", "test")[i % 5]
        rows[part].append(("hurricane_irma", str(900000000000000000 + i), f"{i}_0", text, name, *(label,) * 4))
        if i == 0:
            rows[part].append(("hurricane_irma", str(900000000000000000), "0_1", text, name, *(label,) * 4))
    for part, entries in rows.items():
        path = root / "crisismmd_datasplit_all" / f"task_humanitarian_text_img_{part}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join("\t".join(row) for row in (CRISIS_COLUMNS, *entries)) + "\n")
    return root


def nyu_depth(root: Path, scenes: int = 15, labels40: str = "key") -> Path:
    """The labelled .mat (HDF5 under MATLAB's header); its 40 classes as a key, a file beside it, or by a mapping."""
    import h5py
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    path = root / "nyu_depth_v2_labeled.mat"
    generator = np.random.default_rng(0)
    labels = np.zeros((scenes, 640, 480), dtype=np.uint16)
    images = np.zeros((scenes, 3, 640, 480), dtype=np.uint8)
    depths = np.zeros((scenes, 640, 480), dtype=np.float32)
    for i in range(scenes):
        edge = int(generator.integers(200, 440))
        classes = generator.integers(1, 41, 2)
        labels[i, 40:edge, 30:450], labels[i, edge:600, 30:450] = classes
        images[i] = (labels[i] * 6)[None] + generator.integers(0, 12, (3, 640, 480))
        depths[i] = 1.0 + labels[i] / 10 + 0.01 * generator.standard_normal((640, 480))
    with h5py.File(path, "w", userblock_size=512) as file:
        file["images"], file["depths"] = images, depths
        file["labels"] = labels * 20 if labels40 == "mapping" else labels
        if labels40 == "key":
            file["labels40"] = labels.astype(np.uint8)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .")
    if labels40 == "file":
        savemat(root / "labels40.mat", {"labels40": labels.transpose(2, 1, 0).astype(np.uint8)})
    if labels40 == "mapping":
        savemat(root / "classMapping40.mat", {"mapClass": np.array([[(i + 1) // 20 for i in range(894)]])})
    cut = scenes * 3 // 5
    savemat(root / "splits.mat", {"trainNdxs": np.arange(1, cut + 1)[:, None],
                                  "testNdxs": np.arange(cut + 1, scenes + 1)[:, None]})  # fmt: skip
    return root


def image_encoder(folder: Path, width: int) -> str:
    """A tiny ResNet whose last map has `width` channels, 7 x 7 for pictures of 224 x 224."""
    import torch
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, width], depths=[1, 1, 1, 1], layer_type="basic")
    ResNetModel(config).eval().save_pretrained(folder)
    return str(folder)


def text_encoder(folder: Path) -> str:
    """A tiny BERT with a pooled output of 768 and a WordPiece vocabulary of letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789@#:'.!?_-"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), "damage", "people"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), hidden_size=768, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=130)  # fmt: skip
    BertModel(config).eval().save_pretrained(folder)
    return str(folder)


def vggish(path: Path) -> str:
    """Tiny random weights in VGGish's form."""
    import torch

    from mstdistill.data.decode.encoders import VGGish

    torch.manual_seed(0)
    torch.save(VGGish((4, 4, 8, 8, 8, 8), (16, 16, 128)).state_dict(), path)
    return str(path)
