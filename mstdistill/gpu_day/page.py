"""The page of results: every stage in a row, its figures below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .device import Device
from .stage import Stage


def page(device: Device, stages: Sequence[Stage], results: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [f"# {device.name}", "", "| stage | what | result | seconds |", "| --- | --- | --- | --: |"]
    for stage, result in zip(stages, results, strict=True):
        lines.append(f"| {stage.name} | {stage.about} | {outcome(result)} | {result.get('seconds', '-')} |")
    for stage, result in zip(stages, results, strict=True):
        if result.get("figures"):
            lines += ["", f"## {stage.name}", "", *_figures(result["figures"])]
    return "\n".join(lines) + "\n"


def outcome(result: dict[str, Any]) -> str:
    """In words."""
    if result.get("skipped"):
        return f"skipped: {result['skipped']}"
    return "good" if result["ok"] else f"**failed**: {result['error']}".replace("|", "\\|")


def _figures(figures: dict[str, Any]) -> list[str]:
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            value = ", ".join(
                f"{key} {one:.4g}" if isinstance(one, float) else f"{key} {one}" for key, one in value.items()
            )
        elif isinstance(value, list):
            value = "; ".join(map(str, value)) or "none"
        lines.append(f"- {name}: {value}")
    return lines
