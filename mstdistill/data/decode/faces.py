"""The crop to a face in a row of frames."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError
from .picture import resize


class Faces:
    """Crops to the face in a row of frames.

    Args:
        how: "opencv": OpenCV's frontal-face cascade, "centre": the middle square; "auto": OpenCV where it is installed.

    Attributes:
        how: "opencv" or "centre", as decided.
    """

    def __init__(self, how: str = "auto") -> None:
        if how not in ("auto", "opencv", "centre"):
            raise ConfigError(f"--faces {how!r}: auto, opencv or centre")
        if how == "auto":
            how = "opencv" if _cascade() is not None else "centre"
        if how == "opencv" and _cascade() is None:
            raise ConfigError("--faces opencv needs OpenCV: pip install 'mstdistill[faces]', or take --faces centre")
        self.how = how

    def crop(self, frames: list[np.ndarray], size: int) -> list[np.ndarray]:
        """Each frame's face as [size, size, 3]; where none is found, the last one's box, and before the first the
        middle square."""
        box: tuple[int, int, int, int] | None = None
        crops = []
        for frame in frames:
            box = (self._find(frame) if self.how == "opencv" else None) or box
            left, top, right, bottom = box or _middle(frame)
            crops.append(resize(np.ascontiguousarray(frame[top:bottom, left:right]), (size, size)))
        return crops

    def _find(self, frame: np.ndarray) -> tuple[int, int, int, int] | None:
        """The largest face's box (left, top, right, bottom)."""
        import cv2

        height, width = frame.shape[:2]
        shrink = max(1.0, height / 360)  # faces of a few dozen pixels are enough to find them
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (round(width / shrink), round(height / shrink)), interpolation=cv2.INTER_AREA)
        found = _cascade().detectMultiScale(small, 1.1, 5, minSize=(small.shape[0] // 8,) * 2)
        if not len(found):
            return None
        x, y, w, h = max(found, key=lambda box: box[2] * box[3])
        left, top = int(x * shrink), int(y * shrink)
        return left, top, min(width, int((x + w) * shrink)), min(height, int((y + h) * shrink))


@lru_cache(maxsize=1)
def _cascade() -> Any:
    """OpenCV's frontal-face detector, from the file in its package; None where OpenCV isn't installed."""
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)
    return cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"))


def _middle(frame: np.ndarray) -> tuple[int, int, int, int]:
    height, width = frame.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
