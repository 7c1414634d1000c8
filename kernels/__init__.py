"""The method's arithmetic as free-standing functions: routing, mask reconstruction, distillation over many teachers.

Importing this package needs torch alone, so that one function can be adopted in another training loop:

    from mstdistill.kernels import routed_kd_loss
    loss = routed_kd_loss(student_logits, teacher_logits, indices, temperature=4.0).mean()

Each file holds one operation, with its equations on top and its plain PyTorch form (`*_reference`), which is the
definition that the Triton form in `jit/` is tested against. `launch.py` says which of the two runs, `tiles.py` with
which tiles, `aot.py` compiles the Triton forms without a GPU, `bench/` measures them, `tune/` chooses tiles.
"""

from .bernoulli_kd import bernoulli_distillation, bernoulli_kd_rows
from .mask import MaskWeights, apply_mask, mask_values, masked_reconstruction
from .routed_kd import Distilled, distillation_loss, kd_rows, mixed_kd_rows, routed_kd_loss
from .router import Routing, balance_from_sums, gate, load_balance, route

__all__ = [
    "Distilled",
    "MaskWeights",
    "Routing",
    "apply_mask",
    "balance_from_sums",
    "bernoulli_distillation",
    "bernoulli_kd_rows",
    "distillation_loss",
    "gate",
    "kd_rows",
    "load_balance",
    "mask_values",
    "masked_reconstruction",
    "mixed_kd_rows",
    "route",
    "routed_kd_loss",
]
