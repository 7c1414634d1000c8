"""The benchmark's figures: forms compute the same thing, counts add up, what can't be measured is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mstdistill.kernels.bench import __main__ as bench
from mstdistill.kernels.bench.cases import cases, trained
from mstdistill.kernels.bench.measure import error_of

SMALL = [case for case in cases() if case.on_cpu and case.flops_both < 3e6]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.kernel} {case.shape}")
def test_forms_of_a_case_agree(case: bench.Case) -> None:
    assert set(case.forms) >= {"ours", "plain", "eager"}
    for name in ("ours", "eager"):
        assert error_of(case, case.forms[name], torch.device("cpu")) < 1e-5


def test_attention_baselines_agree() -> None:
    case = next(case for case in cases() if case.shape == "B=512 d=84 dh=14")
    inputs = case.make(torch.device("cpu"), case.dtype, 0)
    trained(inputs, case.learns)
    wanted = float(case.forms["ours"](inputs).detach())
    for name in ("eager", "mha, no weights", "sdpa", "sdpa, scalar values"):
        assert float(case.forms[name](inputs).detach()) == pytest.approx(wanted, rel=1e-3, abs=0.05), name


def test_minimum_bytes_of_the_plan() -> None:
    """Against counts made by hand: 3 tensors of 4096 x 1000 in bf16; k = 2 dense at 480 x 640 would be 4."""
    found = {case.shape: case for case in cases()}
    assert found["B=4096 M=4 C=1000 k=1"].bytes_both == 3 * 4096 * 1000 * 2
    assert found["B=4096 M=64 C=1000 k=soft"].bytes_both == (2 + 64) * 4096 * 1000 * 2
    assert found["B=6 M=4 C=41 k=1 @480x640"].bytes_both == 3 * 6 * 41 * 480 * 640 * 4
    mask = found["B=512 d=596 dh=99"]
    assert mask.flops_both / 512 == pytest.approx(2.120e9, rel=0.02)


def test_command_on_a_machine_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    out = tmp_path / "kernels.json"
    words = [
        "--kernel",
        "route",
        "--shape",
        "B=512",
        "--baselines",
        "eager,liger",
        "--json",
        str(out),
        "--plot",
        str(tmp_path),
    ]
    assert bench.main(words) == 0
    printed = capsys.readouterr()
    facts = json.loads(out.read_text())
    assert [row["form"] for row in facts["rows"]] == ["ours", "eager"]
    assert facts["plan"][0]["bytes_both"] == 512 * 4 * 20 + 512 * 8
    assert "no GPU" in printed.out
    assert "liger_kernel is not installed" in printed.out
    assert "nothing was drawn" in printed.err
    row = facts["rows"][1]
    assert row["ratio"] == pytest.approx(row["both"]["us"] / facts["rows"][0]["both"]["us"])


@pytest.mark.parametrize(("words", "said"), [
    (["--baselines", "cublas"], "unknown baseline 'cublas'; known: eager, compile"),
    (["--kernel", "route", "--shape", "B=7"], "no shape of route holds 'B=7'"),
])  # fmt: skip
def test_wrong_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(words)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
