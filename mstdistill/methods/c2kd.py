"""C2KD: student and teacher learn from each other through proxies, where they agree on the order of the classes (Huo et
al., CVPR 2024).

With z_x logits of x in {t, s}, a_x logits of its proxy (a small head on its penultimate feature), all KL at temperature
1 and the side behind the arrow detached:

    loss = sum over x of [ CE(z_x, y) + KL(a_x <- z_x) + KL(z_x <- a_x) ] + NT(a_s <- a_t) + NT(a_t <- a_s)

NT is the KL of the distributions without the true class's logit, over the instances whose proxies agree: Kendall's
tau-b of a_s and a_t above `krc`. The teacher starts trained alone and goes on learning.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .. import ranks
from ..config import Settings
from ..errors import ConfigError
from ..experiment import Experiment
from ..kernels import kd_rows
from .baseline import Baseline, Seen, Shape, true_class
from .comparison import compare
from .mst import Outcome

# so many comparisons of pairs are held at a time
PAIRS = 2**26


@torch.no_grad()
def kendall_tau(a: Tensor, b: Tensor) -> Tensor:
    """[B] Kendall's tau-b of two rows of scores [B, C]; dense [B, C, H, W]: its mean over the pixels."""
    if a.dim() > 2:
        rows = kendall_tau(*(x.movedim(1, -1).flatten(0, -2) for x in (a, b)))
        return rows.view(len(a), -1).mean(dim=1)
    classes = a.shape[1]
    if len(a) * classes**2 > PAIRS:  # pixels are many; instances fit
        parts = zip(*(x.split(max(PAIRS // classes**2, 1)) for x in (a, b)), strict=True)
        return torch.cat([kendall_tau(*part) for part in parts])
    i, j = torch.triu_indices(classes, classes, 1, device=a.device)
    order_a, order_b = (torch.sign(x[:, i] - x[:, j]) for x in (a, b))
    comparable_a, comparable_b = (order.abs().sum(dim=1) for order in (order_a, order_b))
    return (order_a * order_b).sum(dim=1) / ((comparable_a * comparable_b).sqrt() + 1e-8)


def nontarget_rows(learner: Tensor, reference: Tensor, label: Tensor, remove_target: bool = False) -> Tensor:
    """[B] KL(learner <- reference) without the true class; dense: the mean over the pixels.

    Args:
        label: [B] or [B, H, W]; out of range: no class is true.
        remove_target: leave the true class out of both distributions; false: its logit counts as 0 (quirk 16).
    """
    target, _ = true_class(label, learner.shape[1], None)
    log_q, log_p = (x.masked_fill(target, -float("inf") if remove_target else 0.0).log_softmax(dim=1)
                    for x in (learner, reference.to(learner.dtype)))  # fmt: skip
    if remove_target:
        log_q, log_p = log_q.masked_fill(target, 0.0), log_p.masked_fill(target, 0.0)
    rows = (log_p.exp() * (log_p - log_q)).sum(dim=1)
    return rows.flatten(1).mean(dim=1) if rows.dim() > 1 else rows


def exchange_rows(
    student: Tensor, teacher: Tensor, label: Tensor, krc: float = 0.0, remove_target: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """NT of the student's proxy from the teacher's and the other way round, [B] each, and who agrees [B].

    Dense logits exchange over all instances of a batch in which any agrees, of whichever process.
    """
    agrees = kendall_tau(student, teacher) > krc
    chosen = (ranks.total(agrees.sum()) > 0).expand_as(agrees) if student.dim() > 2 else agrees
    chosen = chosen.to(student.dtype)
    s_from_t = nontarget_rows(student, teacher.detach(), label, remove_target) * chosen
    t_from_s = nontarget_rows(teacher, student.detach(), label, remove_target) * chosen
    return s_from_t, t_from_s, agrees


class Proxy(nn.Module):
    """A feature [B, d] or [B, c, H, W] to logits [B, C]."""

    def __init__(self, shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        width = shape[0]
        if len(shape) == 1:
            self.fc1, self.bn, self.fc2 = nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, num_classes)
        else:
            self.layer = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.1))
            self.fc = nn.Linear(width, num_classes)
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "fc1"):
            logits: Tensor = self.fc2(F.leaky_relu(self.bn(self.fc1(x)), 0.1))
        else:
            logits = self.fc(self.layer(x.mean(dim=(2, 3), keepdim=True)).flatten(1))
        return logits


class DenseProxy(nn.Module):
    """A map [B, c, h, w] to logits [B, C, H, W] of the labels' size."""

    def __init__(self, shape: Sequence[int], num_classes: int, size: Sequence[int]) -> None:
        super().__init__()
        width = shape[0]
        self.layer = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Conv2d(width, num_classes, 1)
        self.size = tuple(size)
        _start(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.fc(self.layer(x)), size=self.size, mode="bilinear", align_corners=False)


def _start(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="leaky_relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Proxies(nn.Module):
    """Both sides' proxies."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"student_proxy": self.student(student[0]), "teacher_proxy": self.teacher(teacher[0])}


class C2kd(Baseline):
    """Mutual distillation through proxies; any task."""

    class Options(Settings):
        krc: float = Field(0.0, ge=-1, le=1, description="least rank correlation of an exchange")
        remove_target: bool = Field(False, description="leave the true class out instead of counting its logit as 0")

    name = "c2kd"
    one_class = "it looks for the one true class of an instance"
    needs_all_seen = "teacher and student teach each other"
    teacher_learns = trains_teacher = True
    options: Options

    def build(self) -> None:
        (student,), (teacher,) = self.look_at_penultimate()
        self.modules = self.new("proxies", lambda: Proxies(self._proxy(student), self._proxy(teacher)))

    def _proxy(self, shape: Shape) -> nn.Module:
        experiment = self.experiment
        classes = experiment.task.num_classes
        if not experiment.dense:
            return Proxy(shape, classes)
        if len(shape) == 1:
            raise ConfigError("method c2kd: a dense task's proxies sit on maps, and a tap gives a vector; pick another")
        return DenseProxy(shape, classes, experiment.first_batch((experiment.target,), 1).label.shape[1:])

    def prepare(self) -> None:
        self.thaw(self.teachers[0])

    def objective(self, seen: Seen) -> dict[str, Tensor]:
        batch = seen.batch
        proxies = {"student": seen.parts["student_proxy"], "teacher": seen.parts["teacher_proxy"]}
        parts = {}
        for name, logits in (("student", seen.student), ("teacher", seen.teacher)):
            proxy = proxies[name]
            parts[f"{name}_task"] = self.experiment.objective.task(logits, batch)
            parts[f"{name}_proxy"] = batch.mean(kd_rows(proxy, logits.detach(), 1.0))
            parts[f"{name}_from_proxy"] = batch.mean(kd_rows(logits, proxy.detach(), 1.0))
        s_from_t, t_from_s, agrees = exchange_rows(
            proxies["student"], proxies["teacher"], batch.label, self.options.krc, self.options.remove_target
        )
        parts |= {"exchange_student": batch.mean(s_from_t), "exchange_teacher": batch.mean(t_from_s)}
        loss = torch.stack(list(parts.values())).sum()
        return {"loss": loss, **parts, "agreement": batch.mean(agrees.to(loss.dtype))}


def run(experiment: Experiment) -> Outcome:
    """Train the teacher alone, then teacher and student together."""
    return compare(experiment, C2kd)
