"""How much each teacher of an instance is to be believed, read from what the teachers say alone.

p_m       = softmax(z_m / T_m)                          T_m calibrated on validation
entropy   : s_m = -H(p_m) / log C
margin    : s_m = the largest of p_m less the second
agreement : s_m = mean over the others o of sum_c p_mc p_oc, the chance that they'd say the same
w_m       = softmax over m of sharpness * s_m
product   : w_m = 1, the probabilities multiplied: right where teachers see different things of one class
mixture   = sum over m of w_m z_m / T_m
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .kernels.constants import LOWEST

CERTAINTIES = ("entropy", "margin", "agreement", "product")
# Temperatures that calibration chooses from: an eighth to eight, two hundredths of a doubling apart.
_GRID = 2.0 ** torch.linspace(-3, 3, 301, dtype=torch.float64)


def as_pairs(logits: Tensor) -> Tensor:
    """Logits [B, M, C] of several classes at once as [B, M, 2, C]: each class's no and yes, a class as a pixel."""
    return torch.stack([torch.zeros_like(logits), logits], dim=2)


def log_weights(
    logits: Tensor, temperature: Tensor, by: str, sharpness: float, seen: Tensor | None = None
) -> Tensor:  # fmt: skip
    """[B, M] logarithms of w_m; they add up to 1 in each instance, except for `product`. Dense logits count by the mean
    over their pixels.

    Args:
        logits: [B, M, C], [B, M, C, H, W], or [B, M, 2, C] of several classes at once.
        temperature: [M].
        by: one of `CERTAINTIES`.
        sharpness: 0 for a plain average; the larger, the more the surest teacher counts.
        seen: [B, M] who can see an instance: others weigh exactly 0 (`LOWEST`), and nobody agrees with them.
    """
    if by == "product":
        even = logits.new_zeros(logits.shape[:2])
        return even if seen is None else even.masked_fill(~seen, LOWEST)
    if logits.dim() > 3:  # pixels as further columns
        logits = logits.flatten(3)
    level = logits / temperature.to(logits.dtype).view(1, -1, *(1,) * (logits.dim() - 2))
    log_p = level.log_softmax(dim=2)
    if by == "entropy":
        score = (log_p.exp() * log_p).sum(dim=2) / math.log(max(2, logits.shape[2]))
    elif by == "margin":
        top = log_p.exp().topk(min(2, logits.shape[2]), dim=2).values
        score = top[:, :, 0] - (top[:, :, 1] if top.shape[2] > 1 else 0.0)
    else:
        p, others = log_p.exp(), max(1, logits.shape[1] - 1)
        if seen is None:
            score = (p * (p.sum(dim=1, keepdim=True) - p)).sum(dim=2) / others
        else:
            p = p * seen.view(*seen.shape, *(1,) * (p.dim() - 2))
            known = (seen.sum(dim=1, keepdim=True) - 1).clamp(min=1).view(-1, 1, *(1,) * (p.dim() - 3))
            score = (p * (p.sum(dim=1, keepdim=True) - p)).sum(dim=2) / known
    score = score.flatten(2).mean(dim=2) if score.dim() > 2 else score
    if seen is None:
        return (sharpness * score).log_softmax(dim=1)
    level = (sharpness * score).masked_fill(~seen, -math.inf).masked_fill(~seen.any(dim=1, keepdim=True), 0.0)
    return level.log_softmax(dim=1).masked_fill(~seen, LOWEST)


def calibration_losses(logits: Tensor, label: Tensor, weight: Tensor, seen: Tensor | None = None) -> Tensor:
    """[M, G + 1] each teacher's summed cross entropies at every temperature of the grid, and how many rows counted.

    Args:
        logits: [B, M, C].
        label: [B] int64; out of range: doesn't count. Of several classes at once [B, C]: 0 or 1.
        weight: [B], 0 for padding.
        seen: [B, M] which teachers see an instance; None: all.
    """
    if label.dim() == 2:  # each class an instance of two
        weight = weight.unsqueeze(1).expand_as(label).flatten()
        seen = None if seen is None else seen.repeat_interleave(label.shape[1], dim=0)
        logits, label = as_pairs(logits).permute(0, 3, 1, 2).flatten(0, 1), label.flatten()
    counts = ((label >= 0) & (label < logits.shape[2])).to(torch.float64) * weight.to(torch.float64)
    every = counts.unsqueeze(1) if seen is None else counts.unsqueeze(1) * seen
    at = label.clamp(0, logits.shape[2] - 1).view(-1, 1, 1).expand(-1, logits.shape[1], 1)
    out = torch.zeros(logits.shape[1], len(_GRID) + 1, dtype=torch.float64, device=logits.device)
    z = logits.to(torch.float64)
    for number, value in enumerate(_GRID.tolist()):
        rows = -(z / value).log_softmax(dim=2).gather(2, at).squeeze(2)
        out[:, number] = (rows * every).sum(dim=0)
    out[:, -1] = every.sum(dim=0)
    return out


def calibrated(losses: Tensor) -> Tensor:
    """[M] the temperatures at which the losses [M, G + 1] are least; 1 where nothing counted, or none matters: a
    teacher without logits there says the same of all classes."""
    grid, flat = losses[:, :-1], 1e-9 * losses[:, :-1].abs().amax(dim=1)
    found = _GRID.to(losses.device)[grid.argmin(dim=1)]
    return torch.where((losses[:, -1] > 0) & (grid.amax(dim=1) - grid.amin(dim=1) > flat), found, 1.0)
