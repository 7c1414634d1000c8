"""Teachers: taps, mask modules, the ensemble of specialised teachers, and the cache of their logits."""
