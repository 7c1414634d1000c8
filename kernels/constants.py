"""What the plain and the Triton form of routing agree on."""

from __future__ import annotations

BALANCES = ("", "KL", "CV")
# Stands for log 0: far below any logarithm of a float, and differences with it stay finite.
LOWEST = -1e30
