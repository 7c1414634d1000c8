"""What to compute for the golden cases of the comparison's methods; see `kinds.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mstdistill.methods.c2kd import DenseProxy, Proxy, exchange_rows, kendall_tau, nontarget_rows
from mstdistill.methods.crd import Contrast, nce_rows
from mstdistill.methods.fitnets import Regressor, hint_rows
from mstdistill.methods.mgdfr import frozen_channels
from mstdistill.methods.mlld import mlld_loss, mlld_parts
from mstdistill.methods.ofa import Projector, ofa_rows
from mstdistill.methods.rkd import Embeddings, angle_loss, distance_loss

Golden = dict[str, Tensor]
Close = Callable[[Tensor, Tensor, str], None]


def leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_(True)


def group(golden: Golden, prefix: str, suffix: str = "") -> Golden:
    return {key[len(prefix) : len(key) - len(suffix)]: value for key, value in golden.items()
            if key.startswith(prefix) and key.endswith(suffix)}  # fmt: skip


def gradients(leaves: dict[str, Tensor], golden: Golden, close: Close, suffix: str = "") -> None:
    """Every gradient that the case holds for these tensors, and none left out."""
    wanted = group(golden, "grad.", suffix)
    assert set(wanted) <= set(leaves), set(wanted) - set(leaves)
    for name, expected in wanted.items():
        found = leaves[name].grad
        assert found is not None, name
        close(found, expected, f"gradient of {name}")


def check_regressor(golden: Golden, params: dict[str, Any], close: Close) -> None:
    module = Regressor(params["student_shape"], params["teacher_shape"]).double()
    module.load_state_dict(group(golden, "param."))
    x = leaf(golden["student_feature"])
    prediction = module(x)
    loss = hint_rows(prediction, golden["teacher_feature"]).mean()
    loss.backward()
    close(prediction, golden["output"], "output")
    close(loss, golden["loss"], "loss")
    gradients({"student_feature": x, **dict(module.named_parameters())}, golden, close)


def check_rkd(golden: Golden, params: dict[str, Any], close: Close) -> None:
    student, teacher = leaf(golden["student_feature"]), golden["teacher_feature"]
    module = Embeddings(student.shape[1], teacher.shape[1], params["embed_dim"]).double()
    module.load_state_dict(group(golden, "param."))
    found = module([student], [teacher])
    embeddings = found["student_embedding"], found["teacher_embedding"]
    distance, angle = distance_loss(*embeddings), angle_loss(*embeddings)
    loss = distance + 2 * angle
    loss.backward()
    parts = {"embed_student": embeddings[0], "embed_teacher": embeddings[1], "distance": distance, "angle": angle}
    for name, value in {**parts, "loss": loss}.items():
        close(value, golden[name], name)
    gradients({"student_feature": student, **dict(module.named_parameters())}, golden, close)


def check_crd(golden: Golden, params: dict[str, Any], close: Close) -> None:
    """Two steps, so that memories and constants carry over."""
    count, width = params["num_data"], params["embed_dim"]
    module = Contrast(golden["student_feature.1"].shape[1], golden["teacher_feature.1"].shape[1], width, count).double()
    state = group(golden, "param.")
    state |= {"memory_s": golden["memory_v1.0"], "memory_t": golden["memory_v2.0"], "z": torch.zeros(2)}
    module.load_state_dict(state)
    for step in ("1", "2"):
        student = leaf(golden[f"student_feature.{step}"])
        found = module([student], [golden[f"teacher_feature.{step}"]])
        v_s, v_t = found["student_embedding"], found["teacher_embedding"]
        index = golden[f"contrast_index.{step}"]
        sides = module.scores(v_s, v_t, index, params["temperature"], torch.ones(len(v_s)))
        loss = torch.stack([nce_rows(side, count, params["eps"]).mean() for side in sides]).sum()
        module.zero_grad()
        loss.backward()
        module.remember(v_s, v_t, golden[f"index.{step}"], params["momentum"])
        close(loss.view(1), golden[f"loss.{step}"], f"loss {step}")
        close(module.z, golden[f"z.{step}"], f"constants {step}")
        close(module.memory_s, golden[f"memory_v1.{step}"], f"student's memory {step}")
        close(module.memory_t, golden[f"memory_v2.{step}"], f"teacher's memory {step}")
        gradients({"student_feature": student, **dict(module.named_parameters())}, golden, close, f".{step}")


def check_mlld(golden: Golden, params: dict[str, Any], close: Close) -> None:
    student, teacher = leaf(golden["student"]), golden["teacher"]
    loss = mlld_loss(student, teacher, params["temperatures"])
    loss.backward()
    close(loss, golden["loss"], "loss")
    for temperature in (2, 4):
        parts = mlld_parts(student, teacher, temperature)
        for name, value in zip(("instance", "class", "batch"), parts, strict=True):
            close(value, golden[f"{name}.T{temperature}"], f"{name} at {temperature}")
    gradients({"student": student}, golden, close)


def check_ofa(golden: Golden, params: dict[str, Any], close: Close) -> None:
    student = leaf(golden["student"])
    rows = ofa_rows(student, golden["teacher"], golden["labels"], params["eps"], params["temperature"])
    rows.mean().backward()
    close(rows.mean(), golden["loss"], "loss")
    gradients({"student": student}, golden, close)


def check_projector(golden: Golden, params: dict[str, Any], close: Close) -> None:
    module = Projector(params["shape"], params["num_classes"]).double().train(params["train"])
    module.load_state_dict(group(golden, "param."))
    x = leaf(golden["x"])
    output = module(x)
    (golden["w"] * output).sum().backward()
    close(output, golden["output"], "output")
    gradients({"x": x, **dict(module.named_parameters())}, golden, close)


def check_c2kd(golden: Golden, params: dict[str, Any], close: Close) -> None:
    """The whole objective, through the method's own wiring."""
    from types import SimpleNamespace

    from mstdistill.data.feeding.batch import Batch
    from mstdistill.methods.baseline import Seen
    from mstdistill.methods.c2kd import C2kd
    from mstdistill.objective import Objective

    names = ("student", "teacher", "student_proxy", "teacher_proxy")
    leaves = {name: leaf(golden[name]) for name in names}
    label = golden["labels"]
    rows = len(label)
    batch = Batch({}, label, torch.arange(rows), torch.ones(rows), float(rows))
    method = C2kd.__new__(C2kd)
    method.options = C2kd.Options(krc=params["krc"])
    method.experiment = SimpleNamespace(objective=Objective())  # type: ignore[assignment]
    proxies = {name: leaves[name] for name in names[2:]}
    found = method.objective(Seen(batch, 0, leaves["student"], leaves["teacher"].unsqueeze(1), proxies))
    found["loss"].backward()
    wanted = {"loss": "loss", "student_task": "part.ce_s", "teacher_task": "part.ce_t", "student_proxy": "part.s_proxy",
              "student_from_proxy": "part.s_model", "teacher_proxy": "part.t_proxy",
              "teacher_from_proxy": "part.t_model", "exchange_student": "part.s_from_t",
              "exchange_teacher": "part.t_from_s"}  # fmt: skip
    for name, key in wanted.items():
        close(found[name], golden[key], name)
    tau = kendall_tau(golden["student_proxy"], golden["teacher_proxy"])
    assert (tau - golden["tau"]).abs().max() < 1e-6
    agrees = exchange_rows(golden["student_proxy"], golden["teacher_proxy"], label, params["krc"])[2]
    assert torch.equal(agrees.long(), golden["mask"])
    gradients(leaves, golden, close)


def check_c2kd_dense(golden: Golden, params: dict[str, Any], close: Close) -> None:
    shape = params["shape"]

    def maps(x: Tensor) -> Tensor:
        return x.view(*shape, -1).movedim(-1, 1)

    student = leaf(golden["student_proxy"])
    label, teacher = golden["labels"].view(shape), maps(golden["teacher_proxy"])
    loss = nontarget_rows(maps(student), teacher, label).mean()
    loss.backward()
    close(loss, golden["loss"], "loss")
    assert (kendall_tau(maps(student), teacher) - golden["tau"]).abs().max() < 1e-6
    gradients({"student_proxy": student}, golden, close)


def check_proxy(golden: Golden, params: dict[str, Any], close: Close) -> None:
    shape, classes, output = params["shape"], params["num_classes"], golden["output"]
    module = DenseProxy(shape, classes, output.shape[2:]) if output.dim() == 4 else Proxy(shape, classes)
    module.double().train().load_state_dict(group(golden, "param."))
    close(module(golden["x"]), output, "output")


def check_freeze(golden: Golden, params: dict[str, Any], close: Close) -> None:
    x, index = golden["x"], golden["index"]
    close(frozen_channels(x, index), golden["output"], "output")
    padded = torch.cat([x, 9 * x[:1]])
    weight = torch.cat([torch.ones(len(x)), torch.zeros(1)])
    close(frozen_channels(padded, index, 1, weight)[:-1], golden["output"], "output beside padding")


BASELINE_CHECKS: dict[str, Callable[[Golden, dict[str, Any], Close], None]] = {
    "fitnets_regressor": check_regressor,
    "rkd": check_rkd,
    "crd": check_crd,
    "mlld": check_mlld,
    "ofa": check_ofa,
    "ofa_projector": check_projector,
    "c2kd": check_c2kd,
    "c2kd_dense": check_c2kd_dense,
    "c2kd_proxy": check_proxy,
    "mgdfr_freeze": check_freeze,
}
