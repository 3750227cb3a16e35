"""The Triton kernels, compiled, at the sizes they are made for; the checks of the interpreter."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from tests.lookm.attention import triton_cases as cases

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
HEADS = [
    (32, 32, 128),
    (32, 8, 128),
    (28, 4, 128),
    (8, 1, 256),
    (12, 12, 64),
    (8, 8, 80),
    (6, 2, 96),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", [[4096], [0, 1, 15, 16, 17, 4095], [819] * 32])
def test_decode(heads: Any, lengths: Any, dtype: Any) -> None:
    cases.check_decode(*heads, lengths, dtype=dtype, device="cuda")


@pytest.mark.parametrize("stored", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", [[4096], [0, 1, 15, 16, 17, 4095]])
def test_decode_of_bytes(heads: Any, lengths: Any, dtype: Any, stored: Any) -> None:
    if stored == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 begins with Ada")
    cases.check_decode(*heads, lengths, dtype=dtype, device="cuda", stored=stored)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    ("tokens", "window"), [(1, 0), (65, 32), (1023, 1), (1500, 32), (2048, 3000)]
)
def test_prefill_and_its_sums(heads: Any, tokens: Any, window: Any, dtype: Any) -> None:
    num_heads, kv_heads, size = heads
    cases.check_prefill(num_heads, kv_heads, tokens, size, window, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("queries", "rows"), [(1, 1), (1, 777), (64, 1024), (333, 1000)])
@pytest.mark.parametrize("heads", HEADS)
def test_extend(heads: Any, queries: Any, rows: Any, dtype: Any) -> None:
    num_heads, kv_heads, size = heads
    cases.check_extend(num_heads, kv_heads, queries, rows, size, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 80, 128, 256])
@pytest.mark.parametrize(("kept", "evicted"), [(1, 5), (819, 3277), (1000, 1)])
def test_merge(kept: Any, evicted: Any, size: Any, dtype: Any) -> None:
    cases.check_nearest(4, kept, evicted, size, dtype=dtype, device="cuda")
    cases.check_combine(4, kept, evicted, size, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "kv_heads", "size"), [(1, 32, 128), (32, 32, 128), (4096, 8, 80)])
def test_write(rows: Any, kv_heads: Any, size: Any, dtype: Any) -> None:
    cases.check_write(rows, kv_heads, size, 16, dtype=dtype, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 16, 32])
@pytest.mark.parametrize("shape", [(4096, 4096), (11008, 4096), (4096, 12288), (72, 50)])
@pytest.mark.parametrize("parts", [(), ("bias", "norm", "gate"), ("sum",)])
def test_linear(parts: Any, shape: Any, rows: Any, dtype: Any) -> None:
    inside = [part for part in parts if part != "norm" or dtype != torch.float16]
    cases.check_linear(rows, *shape, inside, dtype=dtype, device="cuda")
