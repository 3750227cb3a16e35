"""What the C++ kernels do to a layer's rows: norms, rotations, products of few rows."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lookm.attention.kernels import build, cpu_rows

pytestmark = pytest.mark.skipif(bool(build.missing_tools()), reason="needs a compiler")


@pytest.mark.parametrize("size", [16, 64, 100])
@torch.inference_mode()
def test_a_fused_norm_equals_llamas(size: Any) -> None:
    torch.manual_seed(size)
    norm = LlamaRMSNorm(size, eps=1e-5).bfloat16()
    norm.weight.data.normal_()
    x = (torch.randn(3, 40, size) * 5).bfloat16()
    fused = cpu_rows.rms_norm(x, norm.weight, 1e-5)
    assert torch.isclose(fused, norm(x), rtol=2**-7, atol=0).all()
    turned = cpu_rows.rms_norm(x.transpose(0, 1), norm.weight, 1e-5)
    assert torch.equal(turned, fused.transpose(0, 1))


@pytest.mark.parametrize(("heads", "size"), [(3, 16), (5, 80), (2, 64)])
def test_rotation_turns_the_first_heads_and_leaves_the_rest(heads: Any, size: Any) -> None:
    torch.manual_seed(size)
    x = torch.randn(40, (heads + 2) * size).bfloat16()
    angle = torch.randn(40, size // 2).repeat(1, 2)
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    before = x.view(40, -1, size).double()
    half = torch.cat([-before[..., size // 2 :], before[..., : size // 2]], dim=-1)
    expected = before * cos.double()[:, None] + half * sin.double()[:, None]
    cpu_rows.rotate(x, cos, sin, heads)
    got = x.view(40, -1, size)
    assert torch.equal(got[:, heads:].double(), before[:, heads:])
    torch.testing.assert_close(got[:, :heads].double(), expected[:, :heads], rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize(
    ("inputs", "outputs", "bias"), [(64, 96, False), (7, 5, True), (33, 1, True), (1000, 257, True)]
)
def test_few_rows_are_exact_products_rounded_once(
    rows: int, inputs: int, outputs: int, bias: bool
) -> None:
    torch.manual_seed(inputs)
    linear = nn.Linear(inputs, outputs, bias=bias).bfloat16().requires_grad_(False)
    x = torch.randn(rows, inputs).bfloat16()
    exact = copy.deepcopy(linear).double()(x.double())
    out = cpu_rows.linear(x, linear.weight, linear.bias)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-5)


def test_few_rows_are_read_where_they_lie() -> None:
    linear = nn.Linear(48, 10).bfloat16().requires_grad_(False)
    wide = torch.randn(6, 100).bfloat16()
    out = cpu_rows.linear(wide[:, 3:51], linear.weight, linear.bias)
    assert torch.equal(out, cpu_rows.linear(wide[:, 3:51].clone(), linear.weight, linear.bias))
