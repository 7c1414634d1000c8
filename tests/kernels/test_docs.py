"""Every example of docs/kernels runs as it stands, in both forms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs" / "kernels"
EXAMPLES = [(page.stem, number, code) for page in sorted(DOCS.glob("*.md"))
            for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))]  # fmt: skip


@pytest.mark.parametrize("form", ["torch", "triton"])
@pytest.mark.parametrize(("page", "number", "code"), EXAMPLES, ids=[f"{page}-{number}" for page, number, _ in EXAMPLES])
def test_example(page: str, number: int, code: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSTDISTILL_KERNELS", form)
    torch.manual_seed(0)
    space: dict[str, object] = {}
    exec(compile(code, f"{page}.md example {number}", "exec"), space)
    learned = [x for x in space.values() if isinstance(x, torch.Tensor) and x.is_leaf and x.requires_grad]
    assert all(x.grad is not None and bool(torch.isfinite(x.grad).all()) for x in learned)


def test_every_kernel_has_a_page_with_an_example() -> None:
    assert {page for page, _, _ in EXAMPLES} == {"routing", "masks", "distillation"}


def test_both_mask_examples_compute_the_same() -> None:
    """The page says so: the second example, with the first one's numbers."""
    first, second = (code for page, _, code in EXAMPLES if page == "masks")
    results = []
    for code in (first, second):
        torch.manual_seed(0)
        space: dict[str, torch.Tensor] = {}
        exec(code, space)
        results.append(space["rebuilt"])
    assert torch.allclose(*results, atol=1e-6)
