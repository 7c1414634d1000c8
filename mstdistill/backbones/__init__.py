"""Backbones: networks from one or several modality tensors to logits."""
