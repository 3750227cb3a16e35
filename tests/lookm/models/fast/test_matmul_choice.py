"""The choice between the library's products and ours: by the clock, and only equals."""

from typing import Any

import pytest
import torch
from torch import nn

from lookm.models.fast.fuse import FusedNorm
from lookm.models.fast.matmul_choice import Chooser, Product
from tests.lookm.models.fast.stub_matmul import (
    Clock,
    TorchKernel,
    ours_is_faster,
    rms_norm,
    silu_mul,
)


def chooser(seconds: Any, tiles: Any = ("a", "b")) -> Any:
    """With a clock that knows how long each tile, or the library (None), takes at each size."""
    return Chooser(TorchKernel(), tiles, Clock(seconds))


def choice(seconds: Any, **chosen: Any) -> Any:
    return chooser(seconds, **chosen).product(nn.Linear(16, 8)).choice


def test_the_fastest_tile_is_taken() -> None:
    found = choice(lambda tile, rows: {None: 1.0, "a": 0.8, "b": 0.5}[tile])
    assert (found.tile, found.gain, found.max_rows) == ("b", 2, 32)


@pytest.mark.parametrize("slow_rows", [1, 8, 16])
def test_a_tile_that_loses_at_any_batch_is_not_taken(slow_rows: Any) -> None:
    assert choice(lambda tile, rows: 1.0 if tile is None or rows == slow_rows else 0.5) is None


def test_a_tile_that_loses_at_many_rows_is_used_for_few() -> None:
    assert choice(lambda tile, rows: 0.5 if tile and rows <= 16 else 1.0).max_rows == 16


def test_a_gain_within_the_noise_changes_nothing() -> None:
    assert choice(lambda tile, rows: 0.99 if tile else 1.0) is None


def test_a_tile_with_other_results_is_not_taken_however_fast() -> None:
    seconds = {None: 1.0, "wrong": 0.01, "a": 0.5}
    assert choice(lambda tile, rows: seconds[tile], tiles=("wrong", "a")).tile == "a"


def test_every_shape_is_timed_once_for_each_way_it_is_used() -> None:
    made = chooser(lambda tile, rows: 1.0)
    for _ in range(3):
        made.product(nn.Linear(16, 8))
    once = made._clock.calls
    for used in ({"residual": True}, {"gate": silu_mul}):
        made.product(nn.Linear(16, 8), **used)
    made.product(nn.Linear(16, 9))
    assert made._clock.calls == 4 * once


def test_only_plain_linear_layers_have_replacements() -> None:
    made = chooser(ours_is_faster)
    assert made.replacement_for(nn.Embedding(4, 4)) is None
    found = made.replacement_for(nn.Linear(4, 4))
    assert isinstance(found, Product)
    assert made.replacement_for(found) is None
    assert chooser(lambda tile, rows: 1.0).replacement_for(nn.Linear(4, 4)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("gate", [None, silu_mul])
@pytest.mark.parametrize("residual", [False, True])
def test_both_ways_of_a_product_give_the_same(
    norm: Any, gate: Any, residual: Any, dtype: Any
) -> None:
    linear = nn.Linear(16, 8).to(dtype)
    before = FusedNorm(nn.Parameter(torch.rand(16, dtype=dtype)), 1e-5, _Norms()) if norm else None
    made = chooser(ours_is_faster)
    product = made.product(linear, norm=before, gate=gate, residual=residual)
    made._kernel.rows.clear()
    with torch.inference_mode():
        for shape in ((16,), (1, 1, 16), (4, 8, 16), (33, 16), (0, 16)):
            x = torch.randn(shape, dtype=dtype)
            rest = torch.randn(*shape[:-1], 4 if gate else 8, dtype=dtype) if residual else None
            found, plain = product(x, rest), product.by_library(x, rest)
            assert found.shape == plain.shape
            torch.testing.assert_close(found, plain, rtol=1e-2, atol=1e-2)
    assert made._kernel.rows == [1, 1, 32], "many rows, and none, go to the library"


class _Norms:
    rms_norm = staticmethod(rms_norm)
