"""The method's arithmetic as free-standing functions: routing, mask reconstruction, distillation over many teachers.

Importing this package needs torch alone, so that one function can be adopted in another training loop:

    from mstdistill.kernels import routed_kd_loss
    loss = routed_kd_loss(student_logits, teacher_logits, indices, temperature=4.0).mean()

Each file holds one operation, with its equations on top and its plain PyTorch form, which is the definition that any
faster form is tested against.
"""

from .mask import mask_values, masked_reconstruction
from .routed_kd import kd_rows, mixed_kd_rows, routed_kd_loss
from .router import Routing, balance_from_sums, load_balance, route

__all__ = [
    "Routing",
    "balance_from_sums",
    "kd_rows",
    "load_balance",
    "mask_values",
    "masked_reconstruction",
    "mixed_kd_rows",
    "route",
    "routed_kd_loss",
]
