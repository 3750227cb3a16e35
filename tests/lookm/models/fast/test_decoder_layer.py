"""Fused layers of every family: the same numbers, and only where a layer is a Llama's."""

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from lookm.attention.kernels.triton_linear import Tile, linear
from lookm.attention.select import triton_model_kernels
from lookm.models.adapter import Adapter
from lookm.models.fast.decoder_layer import FusedLayer, replace_layers
from lookm.models.fast.equivalence import Seen
from lookm.models.fast.fuse import fuse
from lookm.models.fast.matmul_choice import Chooser, Product
from lookm.models.inputs import PackedRows
from tests.lookm.models.fast.stub_matmul import Clock, TorchKernel, ours_is_faster
from tests.lookm.models.toys import TOYS
from tests.lookm.tiny import answers, random_prompt, tiny_engine, tiny_llava

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOT_LLAMAS = {"gemma3", "paligemma", "qwen3_vl"}  # other norms or gates, norms of queries and keys


def with_fused_layers(adapter: Any, kernel: Any = None, tile: str = "a") -> Any:
    """With our products, by a kernel that is always faster."""
    fuse(adapter._language_model, triton_model_kernels())
    chooser = Chooser(kernel or TorchKernel(), (tile,), Clock(ours_is_faster))
    replace_layers(adapter._language_model, adapter._model, chooser)
    return adapter


def modules(adapter: Any, kind: Any) -> Any:
    return [each for each in adapter._language_model.modules() if type(each) is kind]


@pytest.mark.parametrize("name", sorted(TOYS))
def test_every_family_computes_the_same(name: Any) -> None:
    toy = TOYS[name]
    plain = Adapter(toy.model().to(DEVICE), toy.row)
    changed = with_fused_layers(Adapter(toy.model().to(DEVICE), toy.row))
    for num_rows in (3, 33):  # these by the library
        pos_RT = torch.arange(num_rows, device=DEVICE).expand(plain.position_rows, -1)
        found = [
            each.logits(each.forward(PackedRows(each.embed_tokens([5] * num_rows), pos_RT), Seen()))
            for each in (plain, changed)
        ]
        torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(set(TOYS) - NOT_LLAMAS))
def test_layers_like_llamas_are_four_products(name: Any) -> None:
    changed = with_fused_layers(Adapter(TOYS[name].model().to(DEVICE), TOYS[name].row))
    layers = modules(changed, FusedLayer)
    assert len(layers) == changed.dimensions.num_layers
    assert all(product.choice for product in modules(changed, Product))
    assert not modules(changed, nn.Linear)


def test_a_layer_with_something_else_in_it_is_left_alone() -> None:
    adapter = Adapter(tiny_llava().to(DEVICE), TOYS["llava"].row)
    first = adapter._language_model.layers[0]
    forward = first.forward
    first.forward = lambda *args, **kwargs: 2 * forward(*args, **kwargs)
    changed = with_fused_layers(adapter)
    assert len(modules(changed, FusedLayer)) == changed.dimensions.num_layers - 1


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_an_engine_on_fused_layers_gives_the_same_tokens(kv_heads: Any) -> None:
    asked = [random_prompt(1, seed=n).request(str(n), max_tokens=4) for n in range(2)]
    expected = answers(tiny_engine(tiny_llava(kv_heads=kv_heads).to(DEVICE)), asked)
    engine = tiny_engine(tiny_llava(kv_heads=kv_heads).to(DEVICE), graphs="on")
    with_fused_layers(engine._adapter, linear, Tile(128, 256, 2, 4))
    assert isinstance(engine._adapter._model.lm_head, Product)
    assert answers(engine, asked) == expected
