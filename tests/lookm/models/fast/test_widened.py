"""Linear layers widened to float32 as they multiply, and the kernel for few rows: any processor."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lookm.attention import ModelKernels
from lookm.attention.kernels import build, cpu_rows
from lookm.models.adapter import Adapter
from lookm.models.fast import widened
from lookm.models.fast.equivalence import Seen
from lookm.models.fast.fuse import FusedMLP
from lookm.models.fast.widened import WidenedConv, WidenedLinear, can_widen, silu_mul, widen
from lookm.models.inputs import PackedRows
from tests.lookm.models.toys import TOYS
from tests.lookm.tiny import tiny_llava

pytestmark = pytest.mark.skipif(bool(build.missing_tools()), reason="needs a compiler")

KERNELS = ModelKernels(cpu_rows.rms_norm, cpu_rows.rotate, few_rows=cpu_rows.linear)


def linear_layer(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    torch.manual_seed(inputs)
    return nn.Linear(inputs, outputs, bias=bias).bfloat16().requires_grad_(False)


@pytest.mark.parametrize("rows", [1, 64, 65, 300])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_layer_gives_the_same_for_few_and_for_many_rows(
    rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widened, "_PIECE", 64 * 20)  # a product in several pieces
    linear = linear_layer(64, 96, bias=bias)
    x = torch.randn(2, rows, 64).bfloat16()
    exact = copy.deepcopy(linear).double()(x.double())
    out = WidenedLinear(linear, cpu_rows.linear)(x)
    assert out.shape == exact.shape
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv3d])
@torch.inference_mode()
def test_a_convolution_is_as_exact_as_a_linear_layer(kind: Any) -> None:
    conv = kind(3, 16, kernel_size=2, stride=2).bfloat16()
    x = torch.randn(2, 3, *[8] * (2 if kind is nn.Conv2d else 3)).bfloat16()
    out = WidenedConv(conv)(x)
    assert out.dtype == torch.bfloat16
    exact = copy.deepcopy(conv).double()(x.double())
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-5)


def test_silu_mul_takes_the_gate_first() -> None:
    gate, up = torch.randn(5, 12).double(), torch.randn(5, 12).double()
    expected = gate / (1 + (-gate).exp()) * up
    assert torch.allclose(silu_mul(torch.cat([gate, up], dim=-1)), expected)


@torch.inference_mode()
def test_a_widened_model_gives_the_models_logits() -> None:
    model, wide = tiny_llava().bfloat16(), tiny_llava().bfloat16()
    assert can_widen(wide, KERNELS)
    widen(wide, KERNELS)
    modules = list(wide.modules())
    assert sum(isinstance(module, FusedMLP) for module in modules) == 3
    assert not any(type(module) is nn.Linear for module in modules)
    ids = torch.arange(10, 90)[None]
    exact = tiny_llava().double()(input_ids=ids).logits
    plain_error = (model(input_ids=ids).logits - exact).abs().mean()
    assert (wide(input_ids=ids).logits - exact).abs().mean() < 1.3 * plain_error + 1e-3


def test_float32_models_and_other_processors_are_left_alone() -> None:
    assert not can_widen(tiny_llava(), KERNELS)
    others = ModelKernels(cpu_rows.rms_norm, cpu_rows.rotate)
    assert not can_widen(tiny_llava().bfloat16(), others)


@pytest.mark.parametrize("name", sorted(TOYS))
@torch.inference_mode()
def test_every_family_computes_the_same_widened(name: Any) -> None:
    toy = TOYS[name]
    plain, wide = (Adapter(toy.model().bfloat16(), toy.row) for _ in range(2))
    widen(wide._model, KERNELS)
    kinds = {type(module) for module in wide._model.modules()}
    assert WidenedLinear in kinds
    assert nn.Linear not in kinds
    places = torch.arange(40)
    found = []
    for each in (plain, wide):
        pos_RT = torch.stack([places] * each.position_rows)
        rows = PackedRows(each.embed_tokens(list(range(5, 45))), pos_RT)
        found.append(each.logits(each.forward(rows, Seen())))
    error = (found[0] - found[1]).abs().max() / found[0].abs().max()
    assert error < 0.05
