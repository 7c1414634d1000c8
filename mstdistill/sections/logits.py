"""Which settings go with a teacher that is only logits."""

from __future__ import annotations

from typing import Any

# Files whose rows have an order and no keys.
ORDERED = (".safetensors", ".npy")


def check_logits(teacher: Any) -> None:
    """A teacher is a network that sees modalities, or a file or modality of logits.

    Args:
        teacher: its settings.

    Raises:
        ValueError: a setting of the other kind.
    """
    if teacher.key != "key" and (teacher.logits is None or teacher.logits.endswith(ORDERED)):
        raise ValueError("key names the column of keys of a file of logits that has keys (.npz, a table)")
    if teacher.logits is None:
        if not teacher.modalities:
            raise ValueError("modalities: give at least one that this teacher sees")
        return
    for key in ("backbone", "hf", "weights", "modalities", "taps"):
        if getattr(teacher, key):
            why = "it has no features to mask" if key == "taps" else "leave one of the two out"
            raise ValueError(f"{key} goes with a network, and logits is a teacher without one; {why}")
