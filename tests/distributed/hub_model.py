"""A model of transformers, saved and loaded in a launch: every weight is there. `main` takes a folder."""

from __future__ import annotations

import sys

from mstdistill.engine.launch import start


def main() -> None:
    from transformers import BertConfig, BertModel

    start()
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    BertModel(config).save_pretrained(sys.argv[1])
    model = BertModel.from_pretrained(sys.argv[1])
    assert all(p.numel() for p in model.parameters()), "a teacher in shards"
