"""The comparison's losses against formulas written out in float64, and what their parts promise."""

from __future__ import annotations

import pytest
import torch
from mstdistill.kernels import kd_rows
from torch import Tensor, nn

from mstdistill.backbones.catalogue import backbones, build
from mstdistill.data.feeding.batch import Batch
from mstdistill.errors import ConfigError
from mstdistill.methods import crd, rkd
from mstdistill.methods.average import average_kd_rows
from mstdistill.methods.baseline import relational
from mstdistill.methods.c2kd import kendall_tau, nontarget_rows
from mstdistill.methods.crd import Negatives
from mstdistill.methods.dist import dist_loss
from mstdistill.methods.dkd import decoupled_rows
from mstdistill.methods.fitnets import Regressor, hint_rows
from mstdistill.methods.mlld import mlld_loss
from mstdistill.methods.pseudo import pseudo_rows
from mstdistill.methods.rkd import angle_loss, distance_loss
from mstdistill.methods.separable import Depthwise, Pointwise
from mstdistill.stages.salience import permuted
from mstdistill.teachers.feature import Feature, layers, shapes

from .test_shapes import Tokens


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_dkd_splits_kd_into_its_parts() -> None:
    """Against the formula written out instance by instance, and KD = TCKD + (1 - p_y) NCKD."""
    student, teacher, label, t = logits(6, 5), logits(6, 5, seed=1), torch.tensor([0, 1, 2, 3, 4, 0]), 3.0
    tckd, nckd = decoupled_rows(student, teacher, label, t)
    p, q = (teacher / t).softmax(1), (student / t).softmax(1)
    for b, y in enumerate(label.tolist()):
        p_y, q_y = p[b, y], q[b, y]
        binary = p_y * (p_y / q_y).log() + (1 - p_y) * ((1 - p_y) / (1 - q_y)).log()
        rest = [c for c in range(5) if c != y]
        p_rest, q_rest = p[b, rest] / p[b, rest].sum(), q[b, rest] / q[b, rest].sum()
        assert float(tckd[b]) == pytest.approx(float(t**2 * binary), abs=1e-12)
        assert float(nckd[b]) == pytest.approx(float(t**2 * (p_rest * (p_rest / q_rest).log()).sum()), abs=1e-12)
    own = p.gather(1, label.unsqueeze(1)).squeeze(1)
    assert torch.allclose(tckd + (1 - own) * nckd, kd_rows(student, teacher, t), atol=1e-12)


def test_pseudo_labels_count_where_the_teacher_is_sure() -> None:
    student, teacher = logits(200, 4), 2 * logits(200, 4, seed=1)
    rows = pseudo_rows(student, teacher, 0.8)
    sure, label = teacher.softmax(1).max(1)
    for b in range(200):
        wanted = -student[b].log_softmax(0)[label[b]] if sure[b] >= 0.8 else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(rows[b], wanted)
    assert 0 < int((rows > 0).sum()) < 200
    dense = pseudo_rows(student.T.reshape(1, 4, 10, 20), teacher.T.reshape(1, 4, 10, 20), 0.8)
    torch.testing.assert_close(dense, rows.mean().unsqueeze(0))


def test_dkd_is_finite_where_a_teacher_is_certain_and_skips_ignored_pixels() -> None:
    student, teacher = logits(3, 4).requires_grad_(), torch.zeros(3, 4, dtype=torch.float64)
    teacher[:, 1] = 2000.0
    tckd, nckd = decoupled_rows(student, teacher, torch.tensor([1, 1, 0]), 1.0)
    (tckd + nckd).sum().backward()
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())
    maps, reference = logits(2, 4, 3, 3), logits(2, 4, 3, 3, seed=1)
    label = torch.randint(0, 4, (2, 3, 3), generator=torch.Generator().manual_seed(0))
    found = decoupled_rows(maps, reference, label, 2.0, ignore_index=0)
    flat = [x.movedim(1, -1).flatten(0, 2) for x in (maps, reference)]
    pixels = decoupled_rows(*flat, label.flatten(), 2.0)
    for part, each in zip(found, pixels, strict=True):
        wanted = [each.view(2, -1)[b][label[b].flatten() != 0].mean() for b in range(2)]
        assert torch.allclose(part, torch.stack(wanted))


def test_dist_is_one_minus_pearson_over_both_axes() -> None:
    student, teacher = logits(7, 4), logits(7, 4, seed=1)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)

    def pearson(a: Tensor, b: Tensor) -> Tensor:
        return torch.corrcoef(torch.stack([a, b]))[0, 1]

    inter = sum(1 - pearson(q[i], p[i]) for i in range(7)) / 7
    intra = sum(1 - pearson(q[:, c], p[:, c]) for c in range(4)) / 4
    found = dist_loss(student, teacher, 2.0, inter=1.5, intra=0.5)
    assert float(found) == pytest.approx(float(4 * (1.5 * inter + 0.5 * intra)), abs=1e-9)
    flat = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    dist_loss(flat, logits(4, 3)).backward()
    assert flat.grad is not None
    assert bool(torch.isfinite(flat.grad).all())


@pytest.mark.parametrize("corners", [1, 5, 12])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_angles_from_distances_are_those_of_the_sides(
    dtype: torch.dtype, close: float, corners: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rkd, "_CPU_ANGLES", corners * 12**2)

    def direct(e: torch.Tensor) -> torch.Tensor:
        sides = e.unsqueeze(0) - e.unsqueeze(1)
        lengths = sides.detach().norm(dim=2)
        scale = torch.where(lengths > 0, sides.square().sum(dim=2), torch.inf).rsqrt().unsqueeze(2)
        return (sides * scale) @ (sides * scale).transpose(1, 2)

    e, reference = torch.nn.functional.normalize(logits(2, 12, 7), dim=2)
    e[1] = e[0]  # one instance twice
    e[3] = torch.nn.functional.normalize(e[2] + 1e-2 * logits(7, seed=1), dim=0)
    e = e.to(dtype)
    wide, e = e.double().requires_grad_(), e.requires_grad_()
    wanted = torch.nn.functional.smooth_l1_loss(direct(wide), direct(reference))
    found = angle_loss(e, reference.to(dtype))
    assert found.dtype == dtype
    assert float((direct(wide) - direct(reference)).detach().abs().max()) > 1.0
    assert found.item() == pytest.approx(wanted.item(), rel=close)
    (ours,), (theirs,) = torch.autograd.grad(3 * found, e), torch.autograd.grad(3 * wanted, wide)
    assert torch.allclose(ours.double(), theirs, atol=10 * close * float(theirs.abs().max()))


@pytest.mark.parametrize(("size", "stride"), [((1, 1), 1), ((2, 2), 2), ((3, 4), 2), ((4, 4), 1), ((5, 7), 2)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_separable_convolutions_are_convolutions(
    size: tuple[int, int], stride: int, memory_format: torch.memory_format
) -> None:
    first, second = Depthwise(6, stride).double(), Pointwise(6, 4).double()
    x = logits(3, 6, *size).to(memory_format=memory_format).requires_grad_()
    middle = torch.nn.functional.conv2d(x, first.weight, stride=stride, padding=1, groups=6)
    wanted, found = torch.nn.functional.conv2d(middle, second.weight), second(first(x))
    assert torch.allclose(found, wanted, atol=1e-12)
    weight = logits(*wanted.shape, seed=1)
    of = (x, first.weight, second.weight)
    grads = [torch.autograd.grad((y * weight).sum(), of, retain_graph=True) for y in (found, wanted)]
    assert all(torch.allclose(ours, theirs, atol=1e-12) for ours, theirs in zip(*grads, strict=True))


def test_nothing_is_left_to_learn_where_both_agree() -> None:
    z, label = logits(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    tckd, nckd = decoupled_rows(z, z, label, 4.0)
    losses = [*tckd, *nckd, dist_loss(z, z), mlld_loss(z, z, [2.0, 4.0]), distance_loss(z, z), angle_loss(z, z),
              *nontarget_rows(z, z, label), *nontarget_rows(z, z, label, remove_target=True), *hint_rows(z, z),
              *average_kd_rows(z, torch.stack([z, z], 1), 4.0)]  # fmt: skip
    assert max(abs(float(loss)) for loss in losses) < 1e-9


def test_average_of_losses_and_of_logits() -> None:
    z, teachers = logits(4, 3), logits(4, 2, 3, seed=1)
    each = [kd_rows(z, teachers[:, m], 2.0) for m in range(2)]
    assert torch.allclose(average_kd_rows(z, teachers, 2.0), (each[0] + each[1]) / 2)
    joined = kd_rows(z, (teachers[:, 0] + teachers[:, 1]) / 2, 2.0)
    assert torch.allclose(average_kd_rows(z, teachers, 2.0, "logits"), joined)


def test_kendall_with_ties_and_the_target_left_out() -> None:
    from scipy.stats import kendalltau

    a, b = logits(8, 6).round(), logits(8, 6, seed=1).round()
    wanted = [kendalltau(x, y).statistic for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    # a row without an order, where scipy gives nan, agrees with nothing
    assert torch.allclose(kendall_tau(a, b), torch.tensor(wanted, dtype=torch.float64).nan_to_num(), atol=1e-6)
    label = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1])
    removed = nontarget_rows(a, b, label, remove_target=True)
    keep = torch.ones(8, 6, dtype=torch.bool).scatter_(1, label.unsqueeze(1), False)
    plain = kd_rows(a[keep].view(8, 5), b[keep].view(8, 5), 1.0)
    assert torch.allclose(removed, plain)


def test_negatives_are_of_other_classes_and_depend_on_seed_epoch_and_instance_alone() -> None:
    label = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(0))
    negatives = Negatives(label, seed=3)
    index = torch.arange(200)
    drawn = negatives.draw(index, 64, epoch=1)
    assert bool((label[drawn] != label.unsqueeze(1)).all())
    assert torch.equal(negatives.draw(index[50:60], 64, 1), drawn[50:60])
    assert not torch.equal(negatives.draw(index, 64, 2), drawn)
    assert not torch.equal(Negatives(label, seed=4).draw(index, 64, 1), drawn)
    share = torch.bincount(drawn.flatten(), minlength=200) / drawn.numel()
    assert float(share.min()) > 0.3 / 200  # 64 of 150 for each: every instance comes up
    with pytest.raises(ConfigError, match="one class"):
        Negatives(torch.zeros(5, dtype=torch.int64), 0)


def test_a_relation_counts_by_its_part_of_the_step() -> None:
    x = logits(5, 3)
    batch = Batch({}, torch.zeros(5), torch.arange(5), torch.ones(5), normaliser=10.0, share=0.5)
    assert float(relational(batch, lambda rows: rows.sum(), x)) == pytest.approx(float(x.sum()) / 2)


def test_salience_permutes_one_channel_of_vectors_maps_and_tokens() -> None:
    orders = torch.tensor([[1, 2, 0], [2, 0, 1]])
    for shape, axis in (((3, 4), 1), ((3, 4, 2, 2), 1), ((3, 5, 4), 2)):
        x = logits(*shape)
        found = permuted(x, (torch.tensor([0, 3]), orders), axis)
        for v, channel in enumerate((0, 3)):
            wanted = x.clone()
            wanted.select(axis, channel).copy_(x.select(axis, channel)[orders[v]])
            assert torch.equal(found[v], wanted)


def test_regressors_meet_any_two_shapes() -> None:
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((20,), (7,)), ((5,), (30,)), ((6,), (4, 5, 5)), ((3, 9, 9), (11,)), ((3, 9, 7), (4, 5, 4)),
        ((3, 4, 4), (5, 8, 8)), ((3, 10, 10), (5, 3, 4)), ((3, 4, 4), (5, 4, 4)),
    ]  # fmt: skip
    for student, teacher in pairs:
        prediction = Regressor(student, teacher)(torch.randn(2, *student))
        assert hint_rows(prediction, torch.randn(2, *teacher)).shape == (2,)


@pytest.mark.parametrize(("name", "hidden", "shape"), [
    ("LeNet5", ["conv3", "fc1"], (84,)),
    ("ThreeLayerCNN-A", ["conv2", "conv3"], (25088,)),
    ("MLP-Tb", ["fc1", "fc2"], (512,)),
    ("AudioBranchNet", ["fc1", "fc2"], (160,)),
])  # fmt: skip
def test_features_are_found_where_the_comparison_takes_them(name: str, hidden: list[str], shape: tuple[int]) -> None:
    module = build(name, 5)
    view = {str(i): torch.randn(2, *size) for i, size in enumerate(backbones()[name].inputs)}
    found = layers(module, view, list(view), name)
    assert found[-3:-1] == hidden
    assert shapes(module, view, list(view), [Feature(found[-1], incoming=True)], name) == [shape]


def test_tokens_and_sequences_become_vectors_and_maps() -> None:
    tokens = {"x": torch.randn(2, 5)}
    assert shapes(Tokens(), tokens, ["x"], [Feature("mix"), Feature("head", True)], "m") == [(6,), (30,)]
    sequence = nn.Sequential(nn.Conv1d(3, 8, 3), nn.Flatten(), nn.Linear(40, 2))
    assert shapes(sequence, {"x": torch.randn(2, 3, 7)}, ["x"], [Feature("0")], "m") == [(8, 1, 5)]


@pytest.mark.parametrize("whole", [0, 32])
def test_scores_by_the_rows_or_by_all_of_them(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to the same products and gradients, also where the memory moves on before the backward pass."""
    monkeypatch.setattr(crd, "_WHOLE", whole)
    memory, v = logits(30, 6), logits(4, 6, seed=1).requires_grad_(True)
    index = torch.randint(30, (4, 9), generator=torch.Generator().manual_seed(2))
    wanted = (memory[index] * v.unsqueeze(1)).sum(dim=2)
    (grad,) = torch.autograd.grad(wanted.square().sum(), v)
    found = crd._products(memory, v, index)
    memory.zero_()
    found.square().sum().backward()
    assert torch.allclose(found, wanted, rtol=1e-12)
    assert v.grad is not None
    assert torch.allclose(v.grad, grad, rtol=1e-12)
