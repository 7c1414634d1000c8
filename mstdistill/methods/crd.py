"""CRD: an instance's embeddings by student and teacher are told from those of other instances (Tian et al., ICLR 2020).

With memories M_s, M_t [N, d] of all training instances' embeddings, K negatives of other classes per instance, and
i_0 = the instance itself, i_1 ... i_K the negatives:

    out_s = exp(M_t[i] . v_s / tau) / Z_s,   out_t = exp(M_s[i] . v_t / tau) / Z_t,   c = K / N
    NCE_b = -[ log(P_0 / (P_0 + c + eps)) + sum over k of log(c / (P_k + c + eps)) ]
    loss = (1 - alpha) CE + alpha (mean NCE of out_s + mean NCE of out_t)

Z = N mean(out) of the first global batch, constant ever after. After a batch M[i_0] = normalise(m M[i_0] + (1 - m) v).
All processes hold the same memories: they gather each other's embeddings and make the same updates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .. import ranks
from ..config import Settings
from ..data.feeding.batch import Batch
from ..engine.seeding import named_seed
from ..errors import ConfigError
from ..experiment import Experiment
from ..routing import hash_uniform
from .baseline import Baseline, Seen
from .comparison import compare
from .embedding import Embedding
from .mst import Outcome

# Up to so many times the negatives, all instances are looked at and the wanted ones picked.
_WHOLE = 32


def nce_rows(scores: Tensor, count: int, eps: float = 1e-7) -> Tensor:
    """[B] noise-contrastive loss of normalised scores [B, 1 + K], the positive first, among `count` instances (paper,
    equation 18)."""
    noise = (scores.shape[1] - 1) / count
    positive, negatives = scores[:, 0], scores[:, 1:]
    found = (positive / (positive + noise + eps)).log()
    return -(found + (noise / (negatives + noise + eps)).log().sum(dim=1))


def _products(memory: Tensor, v: Tensor, index: Tensor) -> Tensor:
    """[B, 1 + K] inner products of embeddings [B, d] with the memory's rows at `index`."""
    if len(memory) <= _WHOLE * index.shape[1]:  # a product with all rows is cheaper than copying those asked for
        # the memory moves on before the backward pass, which needs it as it was
        return (v @ memory.clone().t()).gather(1, index)
    return torch.einsum("bkd,bd->bk", memory[index], v)


class Contrast(nn.Module):
    """Embeddings of both sides, and memories of all instances.

    Attributes:
        memory_s, memory_t: [N, width], rows of length 1 once an instance was seen.
        z: [2] the normalising constants of student's and teacher's scores; 0 until the first batch.
    """

    memory_s: Tensor
    memory_t: Tensor
    z: Tensor
    # every process makes the same updates, so that they needn't be sent round
    shared_buffers = ("memory_s", "memory_t", "z")

    def __init__(self, student: int, teacher: int, width: int, count: int) -> None:
        super().__init__()
        self.embed_s, self.embed_t = Embedding(student, width), Embedding(teacher, width)
        bound = (width / 3) ** -0.5
        for name in ("memory_s", "memory_t"):
            self.register_buffer(name, torch.empty(count, width).uniform_(-bound, bound))
        self.register_buffer("z", torch.zeros(2))
        self._ready = False

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, Tensor]:
        return {"student_embedding": self.embed_s(student[0]), "teacher_embedding": self.embed_t(teacher[0])}

    def scores(self, v_s: Tensor, v_t: Tensor, index: Tensor, tau: float, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised scores [B, 1 + K] of both sides.

        Args:
            v_s, v_t: [B, width] embeddings.
            index: [B, 1 + K] instances in the memories, the own one first.
            weight: [B] 0 for padding.
        """
        out = [(_products(memory, v, index) / tau).exp()
               for memory, v in ((self.memory_t, v_s), (self.memory_s, v_t))]  # fmt: skip
        if not self._ready:
            self._ready = bool((self.z > 0).all())
        if not self._ready:
            self._fix_constants([(x.detach() * weight.to(x.dtype).unsqueeze(1)).sum() for x in out], index, weight)
        return out[0] / self.z[0], out[1] / self.z[1]

    def _fix_constants(self, sums: list[Tensor], index: Tensor, weight: Tensor) -> None:
        counted = weight.sum().to(sums[0].dtype) * index.shape[1]
        total = ranks.total(torch.stack([*sums, counted]))
        self.z.copy_(total[:2] / total[2] * len(self.memory_s))
        self._ready = True

    @torch.no_grad()
    def remember(self, v_s: Tensor, v_t: Tensor, index: Tensor, momentum: float) -> None:
        """Move the rows at `index` [B] towards new embeddings; a row whose embedding isn't finite stays."""
        for memory, v in ((self.memory_s, v_s), (self.memory_t, v_t)):
            old = memory[index]
            new = F.normalize(momentum * old + (1 - momentum) * v.detach().to(memory.dtype), dim=1)
            memory[index] = torch.where(new.isfinite().all(dim=1, keepdim=True), new, old)


class Negatives:
    """Instances of other classes, drawn with replacement; an instance's draw depends on (seed, epoch, instance) alone.

    Args:
        label: [N] of the training split.

    Raises:
        ConfigError: there is one class only.
    """

    def __init__(self, label: Tensor, seed: int) -> None:
        # the instances of a class stand in a row; around it are those of the others
        self.order = torch.argsort(label, stable=True)
        _, self.group, sizes = label.unique(return_inverse=True, return_counts=True)
        if len(sizes) < 2:
            raise ConfigError("method crd draws negatives from other classes, and the training data have one class")
        self.sizes, self.starts = sizes, sizes.cumsum(0) - sizes
        self.seed = seed

    def draw(self, index: Tensor, count: int, epoch: int) -> Tensor:
        """[B, count] instances for those at `index` [B]."""
        own = self.group[index].unsqueeze(1)
        uniform = hash_uniform(index, count, named_seed(self.seed, "negatives", epoch) % 2**31)
        place = (uniform * (len(self.order) - self.sizes[own])).to(torch.int64)
        return self.order[place + self.sizes[own] * (place >= self.starts[own])]

    def to(self, device: torch.device) -> Negatives:
        """On a device."""
        self.order, self.group, self.sizes, self.starts = (
            x.to(device) for x in (self.order, self.group, self.sizes, self.starts)
        )
        return self


def gathered(batch: Batch, *tensors: Tensor) -> list[Tensor]:
    """The rows of all processes' instances [W * B, ...] without padding."""
    return [ranks.rows_of_all(x.detach(), round(batch.instances)) for x in tensors]


class Crd(Baseline):
    """Contrast with a memory of all instances; classification."""

    class Options(Settings):
        embedding: int = Field(128, ge=1, description="width of the embeddings")
        negatives: int = Field(4096, ge=1, description="per instance")
        temperature: float = Field(0.07, gt=0, description="of the scores")
        momentum: float = Field(0.5, ge=0, lt=1, description="of the memories")
        eps: float = Field(1e-7, gt=0, description="added to the denominators")

    name = "crd"
    one_class = "it draws negatives from other classes, and an instance has several"
    needs_all_seen = "it draws negatives from all of them"
    not_dense = "it draws negatives from other classes, and an instance of a dense task has many"
    needs_labels = "it draws negatives from other classes"
    reads_logits = False
    options: Options

    def build(self) -> None:
        (student,), (teacher,) = self.look_at_penultimate()
        count = len(self.experiment.splits["train"])
        widths = Embedding.width(student), Embedding.width(teacher)
        self.modules = self.contrast = self.new("contrast", lambda: Contrast(*widths, self.options.embedding, count))
        loader = self.experiment.feeds.loader("train", ())
        label = torch.cat([batch.label for batch in loader.rows(0, count)])
        self.negatives = Negatives(label, self.experiment.recipe.seed).to(self.experiment.accelerator.device)

    def distillation(self, seen: Seen) -> Tensor:
        own, batch = self.options, seen.batch
        v_s, v_t = seen.parts["student_embedding"], seen.parts["teacher_embedding"]
        index = torch.cat([batch.index.unsqueeze(1), self.negatives.draw(batch.index, own.negatives, seen.epoch)], 1)
        sides = self.contrast.scores(v_s, v_t, index, own.temperature, batch.weight)
        rows = [nce_rows(side, len(self.contrast.memory_s), own.eps) for side in sides]
        all_s, all_t, seen_index = gathered(batch, v_s, v_t, batch.index)
        self.contrast.remember(all_s, all_t, seen_index, own.momentum)
        return batch.mean(rows[0] + rows[1])


def run(experiment: Experiment) -> Outcome:
    """Train the teacher alone, then the student with it."""
    return compare(experiment, Crd)
