"""Words that aren't seen: of tokens [B, L], of a tokenizer's tensors [B, K, L], of embedded words [B, L, D]."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .draws import Draws


def word_dropout(x: Tensor, share: float, draws: Draws, rows: Sequence[str] = ()) -> Tensor:
    """This share of the words isn't seen; the first one, in which many networks gather what they read, always is.

    Args:
        rows: of a tokenizer's tensors, the names; a word that isn't seen is masked where there is a mask, else its
            number is 0.
    """
    embedded = x.is_floating_point()
    dropped = draws.uniform(x.shape[-2 if embedded else -1]) < share
    dropped[:, 0] = False
    if embedded:
        return x.masked_fill(dropped.view(len(x), *(1,) * (x.dim() - 3), -1, 1), 0)
    if not rows:
        return x.masked_fill(dropped.view(len(x), *(1,) * (x.dim() - 2), -1), 0)
    place = rows.index("attention_mask") if "attention_mask" in rows else rows.index("input_ids")
    x = x.clone()
    x[:, place].masked_fill_(dropped, 0)
    return x
