"""Data: what a task is, how it is stored, read, split and batched."""
