"""Tables and plots of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def _cell(value: Any, digits: int = 1) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.{digits}f}" if abs(value) >= 0.01 else f"{value:.1e}"
    return str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join(lines + ["| " + " | ".join(_cell(x) for x in row) + " |" for row in rows])


def markdown(facts: Mapping[str, Any]) -> str:
    """Everything that was measured, for people."""
    parts = [
        f"Device: {facts['device']}. torch {facts['torch']}, triton {facts['triton']}. Command: `{facts['command']}`."
    ]
    if facts["missing"]:
        parts.append("Missing: " + "; ".join(facts["missing"]) + ".")
    if facts.get("copy_gb_s"):
        parts.append(f"Copy ceiling of this run: {facts['copy_gb_s']:,.0f} GB/s.")
    if facts["rows"]:
        on_gpu = facts.get("copy_gb_s") is not None
        head = ["kernel", "shape", "type", "form", "forward us", "backward us", "both us", "both p20-p80"]
        head += ["GB/s on minimum bytes", "% of copy", "TFLOP/s", "graph us", "launches"] if on_gpu else []
        head += ["peak MB", "time against ours", "error"]
        rows = []
        for row in facts["rows"]:
            both = row["both"]
            line = [row["kernel"], row["shape"], row["dtype"], row["form"], row["forward"]["us"], row["backward"]["us"],
                    both["us"], f"{both['us_p20']:,.0f}-{both['us_p80']:,.0f}"]  # fmt: skip
            if on_gpu:
                line += [row["gb_s"], row["share"], row["tflop_s"], row["graph_us"], row["launches"]]
            rows.append(
                [*line, row.get("peak_mb"), f"{row['ratio']:.2f}x" if row.get("ratio") else "-", row.get("error")]
            )
        parts.append(table(head, rows))
    plan = [[p["kernel"], p["shape"], p["dtype"], p["bytes_forward"] / 1e6, p["bytes_both"] / 1e6,
             p["flops_both"] / 1e9, p["bytes_both"] / max(p["flops_both"], 1)] for p in facts["plan"]]  # fmt: skip
    parts.append("Fewest bytes and useful operations of every case:\n\n" + table(
        ["kernel", "shape", "type", "forward MB", "both MB", "both GFLOP", "bytes per FLOP"], plan))  # fmt: skip
    return "\n\n".join(parts) + "\n"


def roofline(facts: Mapping[str, Any], folder: Path) -> list[Path]:
    """One roofline plot per kernel; needs matplotlib and GPU times."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kernel in sorted({row["kernel"] for row in facts["rows"]}):
        rows = [row for row in facts["rows"] if row["kernel"] == kernel]
        figure, axes = plt.subplots(figsize=(7, 4.5))
        for form in sorted({row["form"] for row in rows}):
            own = [row for row in rows if row["form"] == form]
            axes.scatter([row["flops_both"] / row["bytes_both"] for row in own],
                         [row["flops_both"] / row["both"]["us"] / 1e6 for row in own], label=form, s=28)  # fmt: skip
        if facts.get("copy_gb_s"):
            low, high = axes.get_xlim()
            edges = [max(low, 1e-2), max(high, 1.0)]
            axes.plot(edges, [x * facts["copy_gb_s"] / 1e3 for x in edges], color="0.5", label="copy ceiling")
        axes.set(xscale="log", yscale="log", xlabel="useful FLOP per minimum byte", ylabel="useful TFLOP/s",
                 title=f"{kernel}, forward and backward, {facts['device']}")  # fmt: skip
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        path = folder / f"roofline-{kernel}.svg"
        figure.tight_layout()
        figure.savefig(path)
        plt.close(figure)
        written.append(path)
    return written
