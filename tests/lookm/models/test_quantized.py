"""int8 weights: close to what they were made of, half the bytes, and only where they should be."""

from typing import Any

import pytest
import torch
from torch import nn

from lookm.config import EngineConfig
from lookm.demo import checkpoint_path
from lookm.engine import Engine
from lookm.models.fast.linear import is_plain
from lookm.models.loading import load_model
from lookm.models.quantized import FEW_ROWS, Int8Linear, quantize_linears, quantized
from tests.lookm.models.toys import TOYS
from tests.lookm.tiny import answers, random_prompt, tiny_engine, tiny_llava

TYPES = (torch.float32, torch.bfloat16, torch.float16)


def linear(out: int = 24, wide: int = 40, *, bias: bool = True, dtype: Any = torch.float32) -> Any:
    torch.manual_seed(out)
    return nn.Linear(wide, out, bias=bias).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_weight_is_at_most_half_a_step_from_what_it_was(dtype: Any) -> None:
    weight = linear(dtype=dtype).weight
    bytes_OI, scale_O = quantized(weight)
    assert (bytes_OI.dtype, scale_O.dtype) == (torch.int8, dtype)
    step_O1 = scale_O.double()[:, None]
    error = (bytes_OI.double() * step_O1 - weight.double()).abs()
    assert (error <= 0.51 * step_O1).all()
    assert bytes_OI.abs().amax() == 127


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-45, 3e38])
def test_rows_of_nothing_and_of_extremes_stay_finite(value: float) -> None:
    weight = torch.full((2, 8), value)
    bytes_OI, scale_O = quantized(weight)
    assert torch.isfinite(scale_O).all()
    assert (scale_O > 0).all()
    if value in (0.0, 3e38):
        torch.testing.assert_close(bytes_OI * scale_O[:, None], weight)


@pytest.mark.parametrize(("wide", "out"), [(64, 24), (40, 24), (32, 25), (96, 8)])
@pytest.mark.parametrize("num_rows", [1, 3, FEW_ROWS, FEW_ROWS + 1, 200])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_product_is_that_of_the_bytes(
    dtype: Any, bias: bool, num_rows: int, wide: int, out: int
) -> None:
    plain = linear(out, wide, bias=bias, dtype=dtype)
    made = Int8Linear(plain)
    x = torch.randn(2, num_rows, wide).to(dtype)[0][None]
    weight = made.weight.double() * made.scale.double()[:, None]
    expected = nn.functional.linear(x.double(), weight, plain.bias.double() if bias else None)
    found = made(x)
    assert (found.dtype, found.shape) == (dtype, (1, num_rows, out))
    digits = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(found.double(), expected, atol=digits, rtol=digits)


@pytest.mark.parametrize("num_rows", [1, 40])
@pytest.mark.parametrize("wide", [True, False])
def test_sums_in_half_precision_stay_in_its_range(
    num_rows: int, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not wide:
        monkeypatch.setattr("lookm.models.quantized._wide_type", lambda x: x.dtype)
    plain = nn.Linear(4096, 8, bias=False, dtype=torch.float16).requires_grad_(False)
    plain.weight.fill_(0.01)
    found = Int8Linear(plain)(torch.full((num_rows, 4096), 50.0, dtype=torch.float16))
    torch.testing.assert_close(found, torch.full_like(found, 2048.0), rtol=0.01, atol=0)


def test_many_rows_are_the_same_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = Int8Linear(linear()), torch.randn(50, 40)
    whole = made(x)
    monkeypatch.setattr("lookm.models.quantized._PIECE", 7 * 40)
    torch.testing.assert_close(made(x), whole)


@pytest.mark.parametrize("name", TOYS)
def test_only_the_language_models_layers_are_made_small(name: str) -> None:
    toy = TOYS[name]
    model = toy.model()
    text = getattr(model.model, toy.row.text_model)
    vision = [m for m in model.modules() if is_plain(m) and m not in set(text.modules())]
    before = sum(is_plain(m) for m in text.modules())
    quantize_linears(text)
    assert before > 0
    assert sum(isinstance(m, Int8Linear) for m in text.modules()) == before
    assert all(is_plain(m) for m in vision)
    assert is_plain(model.lm_head)
    assert {id(m) for m in vision} <= {id(m) for m in model.modules()}


def test_half_of_the_bytes_are_held() -> None:
    full, small = (
        load_model(
            str(checkpoint_path()),
            dtype=torch.bfloat16,
            device=torch.device("cpu"),
            quantize=quantize,
        )[0]
        for quantize in ("none", "int8")
    )

    def held(model: Any) -> int:
        layers = model.model.language_model.layers
        return sum(each.nbytes for each in (*layers.parameters(), *layers.buffers()))

    assert 0.5 < held(small) / held(full) < 0.52


def test_answers_do_not_depend_on_who_else_is_answered() -> None:
    model = tiny_llava()
    quantize_linears(model.model.language_model)
    requests = [random_prompt(n, seed=n).request(f"r{n}") for n in range(4)]
    together = answers(tiny_engine(model), requests)
    for request in requests:
        assert answers(tiny_engine(model), [request])[request.id] == together[request.id]


def test_the_engine_takes_fast_paths_for_the_rest_and_answers() -> None:
    """Norms are fused, products are left alone: the demo model still knows its pictures."""
    engine = Engine.from_config(EngineConfig(quantization="int8", kv_cache_bytes=2**24))
    text = engine._adapter._language_model
    assert sum(isinstance(m, Int8Linear) for m in text.modules()) == 6 * 7
    from lookm.demo.scenes import Scene, render
    from lookm.types import Request, Sampling

    image = engine.processor.image(render(Scene(kind="star", colour="blue")), digest="star")
    content = [{"type": "image"}, {"type": "text", "text": "What is in image 1?"}]
    prompt = engine.processor.prompt([{"role": "user", "content": content}], [image])
    request = Request("a", prompt, (image,), sampling=Sampling(max_tokens=30))
    text_out = "".join(event.text for event in engine.generate([request]))
    assert "blue star" in text_out
