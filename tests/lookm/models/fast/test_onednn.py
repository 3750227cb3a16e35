"""Packed linear layers and fused norms against the modules they replace."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from lookm.attention import ModelKernels
from lookm.attention.kernels import build, cpu_rows
from lookm.models.adapter import Adapter
from lookm.models.fast.equivalence import Seen
from lookm.models.fast.fuse import FusedAttention, FusedNorm
from lookm.models.fast.onednn import PackedLinear, PackedMLP, can_pack, pack, rounded_rows
from lookm.models.inputs import PackedRows
from lookm.policy import parse
from tests.lookm.models.toys import TOYS
from tests.lookm.tiny import random_prompt, tiny_engine, tiny_llava

pytestmark = pytest.mark.skipif(
    bool(build.missing_tools()) or not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    reason="needs a compiler and a processor that multiplies bfloat16",
)


KERNELS = ModelKernels(cpu_rows.rms_norm, cpu_rows.rotate)


def bfloat16_llava() -> Any:
    return tiny_llava().bfloat16()


@pytest.mark.parametrize("rows", [1, 3, 64, 1500])
@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(64, 96, False), (7, 5, True)])
@torch.inference_mode()
def test_a_packed_layer_is_as_close_to_float64_as_the_layer(
    rows: Any, inputs: Any, outputs: Any, bias: Any
) -> None:
    torch.manual_seed(rows)
    linear = nn.Linear(inputs, outputs, bias=bias).bfloat16()
    x = torch.randn(2, rows, inputs).bfloat16()
    exact = copy.deepcopy(linear).double()(x.double())
    assert (PackedLinear(linear)(x) - exact).abs().max() <= 2**-7 * exact.abs().max()


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.llamas, self.gemmas = LlamaRMSNorm(32), Gemma3RMSNorm(32)
            self.layer_norm = nn.LayerNorm(32)

    model = Model().bfloat16()
    model.gemmas.weight.data.fill_(0.5)
    pack(model, KERNELS)
    assert isinstance(model.llamas, FusedNorm)
    assert isinstance(model.gemmas, Gemma3RMSNorm)
    assert isinstance(model.layer_norm, nn.LayerNorm)


@pytest.mark.parametrize(("activation", "fuses"), [("silu", True), ("gelu", False)])
@torch.inference_mode()
def test_a_gated_mlp_is_fused_where_its_activation_is_silu(activation: Any, fuses: Any) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=64, intermediate_size=160, hidden_act=activation)
    model = nn.ModuleList([LlamaMLP(config)]).bfloat16()
    exact_of = copy.deepcopy(model[0]).double()
    pack(model, KERNELS)
    assert isinstance(model[0], PackedMLP) is fuses
    x = torch.randn(3, 50, 64).bfloat16()
    exact = exact_of(x.double())
    assert (model[0](x) - exact).abs().max() <= 2**-6 * exact.abs().max()


@torch.inference_mode()
def test_a_packed_model_gives_the_models_logits() -> None:
    model, packed = bfloat16_llava(), bfloat16_llava()
    assert can_pack(packed)
    pack(packed, KERNELS)
    assert sum(isinstance(module, PackedMLP) for module in packed.modules()) == 3
    assert not any(type(module) is nn.Linear for module in packed.modules())
    ids = torch.arange(10, 70)[None]
    exact = tiny_llava().double()(input_ids=ids).logits
    plain_error = (model(input_ids=ids).logits - exact).abs().mean()
    assert (packed(input_ids=ids).logits - exact).abs().mean() < 1.3 * plain_error + 1e-3


def test_float32_models_are_never_packed() -> None:
    assert not can_pack(tiny_llava())


def test_the_reference_attention_leaves_the_model_as_it_is() -> None:
    for attention, expected in (("reference", True), ("cpu", False)):
        model = bfloat16_llava()
        tiny_engine(model, attention=attention)
        assert any(type(module) is nn.Linear for module in model.modules()) is expected
        fused = sum(isinstance(module, FusedAttention) for module in model.modules())
        assert fused == (0 if expected else 3)


def test_an_engine_on_a_packed_model_answers() -> None:
    engine = tiny_engine(bfloat16_llava(), attention="cpu")
    events = list(engine.generate([random_prompt(2, seed=1).request("a")]))
    assert events[-1].finish in ("stop", "length")


def test_row_counts_are_rounded_to_sixteen_sizes_an_octave() -> None:
    assert [rounded_rows(n) for n in (1, 7, 32, 33, 64, 65, 1023, 1024, 1025, 1196)] == [
        1, 7, 32, 34, 64, 68, 1024, 1024, 1088, 1216,
    ]  # fmt: skip
    sizes = {rounded_rows(n) for n in range(1025, 2049)}
    assert len(sizes) == 16
    assert all(n <= rounded_rows(n) <= 1.0625 * n for n in range(32, 5000))


@pytest.mark.parametrize("policy", ["full", "look-m@0.3"])
def test_padded_rows_change_nothing_but_rounding(policy: Any) -> None:
    engines = [tiny_engine(bfloat16_llava(), attention="cpu") for _ in range(2)]
    engines[1]._adapter._packed = False
    prompt = random_prompt(4, seed=3, text_tokens=6)
    assert rounded_rows(len(prompt.ids)) > len(prompt.ids)
    asked = prompt.request("a", policy=parse(policy))
    first, second = (list(engine.generate([asked])) for engine in engines)
    assert [event.token_id for event in first] == [event.token_id for event in second]
    assert first[-1].cache == second[-1].cache


@pytest.mark.parametrize("name", sorted(TOYS))
@torch.inference_mode()
def test_every_family_computes_the_same_packed_wherever_its_tokens_are(name: Any) -> None:
    toy = TOYS[name]
    plain, packed = (Adapter(toy.model().bfloat16(), toy.row) for _ in range(2))
    packed.accelerate(KERNELS)
    assert any(isinstance(module, PackedLinear) for module in packed._model.modules())
    places = torch.arange(40)
    found = []
    for each in (plain, packed):
        pos_RT = torch.stack([places * (r + 1) % 17 + r for r in range(each.position_rows)])
        rows = PackedRows(each.embed_tokens(list(range(5, 45))), pos_RT)
        found.append(each.logits(each.forward(rows, Seen())))
    error = (found[0] - found[1]).abs().max() / found[0].abs().max()
    assert error < 0.05
