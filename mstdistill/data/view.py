"""Names of views: a modality as a network sees it."""

from __future__ import annotations


def modality_of(view: str) -> str:
    """The modality that a view shows."""
    return view.partition("@")[0]
