"""Pictures of every mode, type and shape: the right value in 8 bits, or one line that names the row."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from mstdistill.data.decode.picture import decode_image, pixels, read_rgb
from mstdistill.errors import DataError

G = np.random.default_rng(0)
RGB = G.integers(0, 256, (20, 40, 3), dtype=np.uint8)
DEEP = G.integers(0, 65536, (20, 40), dtype=np.uint16)
WHITE = np.uint8(255)


# changed files make Pillow wonder aloud
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def encoded(image: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def seen(value: Any) -> np.ndarray:
    row = {"bytes": value, "path": None} if isinstance(value, bytes) else value
    return np.asarray(decode_image(row, "photo of train/3"))


def refused(value: Any) -> str:
    with pytest.raises(DataError) as error:
        decode_image(value, "photo of train/3")
    line = str(error.value)
    assert line.startswith("photo of train/3")
    assert "\n" not in line
    assert " at 0x" not in line  # differs from run to run
    return line


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_pictures_stand_as_their_exif_says(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    content = encoded(Image.fromarray(RGB), kind, exif=exif)
    wanted = datasets.Image().decode_example({"bytes": content, "path": None}).convert("RGB")
    assert wanted.size == ((20, 40) if orientation in (6, 7) else (40, 20))
    assert np.array_equal(seen(content), np.asarray(wanted))
    (tmp_path / "a [1].img").write_bytes(content)
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "a [1].img")), np.asarray(wanted))
    assert np.array_equal(seen({"bytes": None, "path": str(tmp_path / "a [1].img")}), np.asarray(wanted))
    again = decode_image(decode_image({"bytes": content}, "once"), "twice")
    assert np.array_equal(np.asarray(again), np.asarray(wanted))


def test_a_damaged_exif_block_leaves_the_pixels() -> None:
    content = encoded(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0rubbish")
    assert np.array_equal(seen(content), seen(encoded(Image.fromarray(RGB), "JPEG")))


def by(top: float, values: np.ndarray = DEEP) -> np.ndarray:
    """As 8 bits, in exact arithmetic."""
    return np.rint(values.astype(np.float64) * 255 / top).astype(np.uint8)


UNIT = DEEP / 65535


@pytest.mark.parametrize(("value", "wanted"), [
    (encoded(Image.fromarray(DEEP), "PNG"), by(65535)),
    (encoded(Image.fromarray(DEEP), "TIFF"), by(65535)),
    (encoded(Image.fromarray(DEEP), "PPM"), by(65535)),
    (encoded(Image.fromarray(DEEP // 300), "PPM"), by(65535, DEEP // 300)),
    (Image.frombytes("I;16B", (40, 20), DEEP.astype(">u2").tobytes()), by(65535)),
    (encoded(Image.fromarray(UNIT.astype(np.float32)), "TIFF"), by(1, UNIT.astype(np.float32))),
    (Image.fromarray((UNIT * 255).astype(np.float32)), by(255, (UNIT * 255).astype(np.float32))),
    (Image.fromarray((DEEP // 257).astype(np.int32)), by(255, DEEP // 257)),
    (DEEP, by(65535)),
    (DEEP.astype(np.int32), by(65535)),
    ((DEEP // 257).astype(np.int64), by(255, DEEP // 257)),
    (UNIT, by(1, UNIT)),
    ((UNIT * 255).astype(np.float32), by(255, (UNIT * 255).astype(np.float32))),
    (DEEP > 30000, by(1, DEEP > 30000)),
    (DEEP[..., None], by(65535)),
    (RGB, RGB),
    (RGB.astype(np.float64) / 255, RGB),
    (RGB.astype(np.uint16) * 257, RGB),
    (RGB.transpose(2, 0, 1), RGB),
    (RGB[None, ..., 0], RGB[..., 0]),
    (np.concatenate([RGB, np.full((20, 40, 1), 255, np.uint8)], 2), RGB),
    (np.concatenate([RGB, np.zeros((20, 40, 1), np.uint8)], 2).transpose(2, 0, 1), np.full_like(RGB, 255)),
    (RGB[:3], RGB[:3]),
    (np.uint8([[7]]), np.uint8([[7]])),
])  # fmt: skip
def test_values_are_scaled_by_their_range(value: Any, wanted: np.ndarray) -> None:
    assert np.array_equal(seen(value), wanted)


@pytest.mark.parametrize(("value", "words"), [
    (np.full((4, 4), np.nan), "NaN or Inf"),
    (np.full((4, 4, 3), np.inf, np.float32), "NaN or Inf"),
    (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "NaN or Inf"),
    (UNIT * 2 - 1, "holds values from -"),
    (DEEP.astype(np.int64) * 99, "whose range isn't known"),
    (Image.fromarray(DEEP.astype(np.int32) - 5000), "holds values from -4967 to 60409"),
    (RGB.astype(complex), "an array of complex128"),
    (np.zeros((4, 4), "U3"), "an array of <U3"),
    (np.zeros(9), "an array [9] is no picture; give [H, W], [H, W, 3] or [3, H, W]"),
    (np.zeros((5, 9, 9)), "an array [5, 9, 9] is no picture"),
    (np.zeros((0, 9, 3), np.uint8), "an array [0, 9, 3] is no picture"),
    (Image.new("RGB", (0, 0)), "has no pixels, 0 x 0"),
])  # fmt: skip
def test_values_that_mean_nothing_are_refused(value: Any, words: str) -> None:
    assert words in refused(value)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("RGBA", "WEBP"), ("LA", "PNG"), ("RGBa", None),
                                            ("La", None), ("PA", None)])  # fmt: skip
def test_transparency_lies_on_white(mode: str, kind: str | None, tmp_path: Path) -> None:
    clear = Image.fromarray(RGB).convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 20, 20))  # the left half
    image = clear.convert({"RGBA": "RGBA", "RGBa": "RGBA"}.get(mode, "LA")).convert(mode)
    if mode == "PA":
        image.putalpha(clear.getchannel("A"))  # which the conversion drops
    wanted = np.asarray((image.convert("LA") if mode == "La" else image).convert("RGB")).copy()
    wanted[:, :20] = WHITE
    found = seen(encoded(image, kind, lossless=True) if kind else image)
    assert np.array_equal(found, wanted)
    if kind:
        (tmp_path / "a").write_bytes(encoded(image, kind, lossless=True))
        assert np.array_equal(np.asarray(read_rgb(tmp_path / "a")), found)


def test_a_colour_that_stands_for_transparency_is_white() -> None:
    grey = np.uint8([[0, 100, 200]])
    for content, wanted in (
        (encoded(Image.fromarray(grey), "PNG", transparency=100), [[0, 255, 200]]),
        (encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG", transparency=25700), [[0, 255, 200]]),
        (encoded(Image.fromarray(grey > 50), "PNG", transparency=0), [[255, 255, 255]]),
        (encoded(Image.fromarray(RGB[:1, :2]), "PNG", transparency=tuple(RGB[0, 1].tolist())),
         [[RGB[0, 0].tolist(), [255] * 3]]),
        (encoded(Image.fromarray(grey).convert("P"), "GIF", transparency=100), [[[0] * 3, [255] * 3, [200] * 3]]),
    ):  # fmt: skip
        assert seen(content).tolist() == wanted


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"])
def test_other_modes_become_grey_or_rgb(mode: str, tmp_path: Path) -> None:
    smooth = Image.fromarray(np.uint8([[[200, 60, 30]]])).resize((40, 20))
    image = smooth.convert(mode, palette=Image.Palette.ADAPTIVE)
    found = seen(image)
    if mode in "1L":
        assert found.shape == (20, 40)
    else:
        assert np.abs(found.astype(int) - [200, 60, 30]).max() < 4
    if mode == "CMYK":
        found = seen(encoded(image, "JPEG"))  # stored inverted
        assert np.abs(found.astype(int) - [200, 60, 30]).max() < 8


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_of_several_frames_is_taken(kind: str) -> None:
    frames = [Image.fromarray(np.full((8, 9, 3), grey, np.uint8)) for grey in (50, 200, 100)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert np.abs(seen(content).astype(int) - 50).max() <= 2


def declared(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is of this size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 9)),
              (b"IEND", b"")]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def test_picture_bombs_are_named_with_the_limit() -> None:
    for size, kind in (((12000, 12000), "Warning"), ((60000, 60000), "Error"), ((2**31 - 1, 2**31 - 1), "Error")):
        line = refused({"bytes": declared(*size), "path": "bomb.png"})
        assert f"(bomb.png): more than {Image.MAX_IMAGE_PIXELS:,} pixels (DecompressionBomb{kind}" in line
    assert "not a readable image" in refused({"bytes": declared(0, 5)})


KINDS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PCX", "ICO", "TGA", "JPEG2000", "MPO", "DDS", "SGI")


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_decoder_raises_is_one_line(kind: str) -> None:
    """Truncated anywhere, and with bytes changed: a picture, or a line."""
    content = encoded(Image.fromarray(RGB), kind)
    broken = [content[:cut] for cut in (1, 9, 30, len(content) // 2)]
    for _ in range(40):
        changed = bytearray(content)
        for place in G.integers(0, min(len(content), 200), 3):
            changed[place] = G.integers(256)
        broken.append(bytes(changed))
    lines = []
    for one in broken:
        try:
            assert decode_image({"bytes": one, "path": "a.img"}, "photo of train/3").mode in ("L", "RGB")
        except DataError as error:
            lines.append(str(error))
    assert len(lines) >= 3
    assert all(line.startswith("photo of train/3 (a.img)") and "\n" not in line for line in lines)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    for value, words in (
        ({"bytes": None, "path": None}, "is empty"),
        ({"bytes": b"", "path": None}, "is empty"),
        ({"bytes": None, "path": str(tmp_path / "none[1].png")}, "none[1].png can't be read (No such file"),
        ({"bytes": None, "path": str(tmp_path)}, "can't be read (Is a directory)"),
        ({"bytes": None, "path": "nothing://a/b.png"}, "nothing://a/b.png can't be read (Protocol not known"),
        ({"bytes": None, "path": "a\0b"}, "can't be read (embedded null byte)"),
        ({"bytes": None, "path": str(tmp_path / "empty.png")}, "empty.png) is an empty file"),
        ({"bytes": None, "path": str(tmp_path / "text.png")}, "text.png): not a readable image (of no format"),
        ({"bytes": 5, "path": None}, "holds int where the bytes of a file are wanted"),
        ([1, 2], "is no file but list"),
        (None, "is no file but NoneType"),
    ):
        assert words in refused(value)
    with pytest.raises(DataError, match=r"text.png: not a readable image"):
        read_rgb(tmp_path / "text.png")


def test_pixels_of_grey_and_colour() -> None:
    assert pixels(decode_image(DEEP, "a")).shape == (1, 20, 40)
    assert np.array_equal(pixels(decode_image(RGB, "a")), RGB.transpose(2, 0, 1).astype(np.float32) / 255)
