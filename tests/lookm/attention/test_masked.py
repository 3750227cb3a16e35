"""Masked and windowed attention against one written out whole."""

from typing import Any

import pytest
import torch

from lookm.attention import ReferenceAttention, masked
from lookm.pages import Pages
from lookm.types import Needs

HEADS, KV, SIZE, SCALE = 4, 2, 8, 0.3
ALL = Needs(sums=True, squares=True, window=5)


def qkv(num_queries: Any, num_rows: Any, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    random = torch.Generator().manual_seed(seed)
    shapes = (HEADS, num_queries, SIZE), (KV, num_rows, SIZE), (KV, num_rows, SIZE)
    return tuple(torch.randn(shape, generator=random).to(dtype) for shape in shapes)


def written_out(q: Any, k: Any, v: Any, allowed: Any) -> Any:
    """Output `[T, H, D]` and the matrix `[H, T, S]`, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    k, v = (t.repeat_interleave(HEADS // KV, dim=0) for t in (k, v))
    matrix = (q @ k.transpose(1, 2) * SCALE).masked_fill(~allowed, -torch.inf).softmax(-1)
    return (matrix @ v).transpose(0, 1), matrix


def blocks(num_tokens: Any) -> Any:
    """Causal, and tokens 3 to 8 see each other."""
    allowed = torch.ones(num_tokens, num_tokens).tril().bool()
    allowed[3:9, 3:9] = True
    return allowed


def within(num_queries: Any, num_rows: Any, window: Any) -> Any:
    own = torch.arange(num_rows - num_queries, num_rows)[:, None]
    rows = torch.arange(num_rows)
    return (rows <= own) & (rows > own - window)


@pytest.mark.parametrize("num_tokens", [12, 64, 150])
def test_prefill_gives_the_output_and_sums_of_its_own_matrix(num_tokens: Any) -> None:
    q, k, v = qkv(num_tokens, num_tokens)
    mask = blocks(num_tokens)
    expected, matrix = written_out(q, k, v, mask)
    by_kv = matrix.view(KV, -1, num_tokens, num_tokens)
    plain, none = masked.prefill(q, k, v, scale=SCALE, mask_TT=mask, needs=Needs())
    out, found = masked.prefill(q, k, v, scale=SCALE, mask_TT=mask, needs=ALL)
    for got in (plain, out):
        assert torch.allclose(got.double(), expected, atol=1e-5)
    assert none.sums_KT is none.squares_KT is none.window_KT is None
    assert torch.allclose(found.sums_KT.double(), by_kv.sum((1, 2)), atol=1e-4)
    assert torch.allclose(found.squares_KT.double(), by_kv.square().sum((1, 2)), atol=1e-4)
    assert torch.allclose(found.window_KT.double(), by_kv[:, :, -5:].sum((1, 2)), atol=1e-5)


def test_under_a_causal_mask_prefill_is_the_reference() -> None:
    q, k, v = qkv(90, 90)
    causal = torch.ones(90, 90).tril().bool()
    out, found = masked.prefill(q, k, v, scale=SCALE, mask_TT=causal, needs=ALL)
    twin, expected = ReferenceAttention().prefill(q, k, v, scale=SCALE, needs=ALL)
    assert torch.allclose(out, twin, atol=1e-5)
    for name in ("sums_KT", "squares_KT", "window_KT"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-4)


@pytest.mark.parametrize("window", [1, 7, 300, 1000])
@pytest.mark.parametrize(("num_queries", "num_rows"), [(1, 1), (1, 40), (40, 40), (300, 620)])
def test_extend_sees_only_its_window(num_queries: Any, num_rows: Any, window: Any) -> None:
    q, k, v = qkv(num_queries, num_rows)
    expected, _ = written_out(q, k, v, within(num_queries, num_rows, window))
    out = masked.extend(q, k, v, scale=SCALE, window=window)
    assert torch.allclose(out.double(), expected, atol=1e-5)


@pytest.mark.parametrize("window", [1, 3, 4, 9, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decode_sees_the_last_rows_of_its_pages(window: Any, dtype: Any) -> None:
    """Lengths shorter than the window, equal to it, at a page's border and beyond."""
    lengths = torch.tensor([1, 3, 4, 8, 9, 21])
    pages_each, page_tokens = 6, 4
    random = torch.Generator().manual_seed(1)
    k_pages, v_pages = (
        torch.randn(40, KV, page_tokens, SIZE, generator=random).to(dtype) for _ in range(2)
    )
    table = torch.randperm(40, generator=random)[: 6 * pages_each].view(6, pages_each).int()
    q = torch.randn(6, HEADS, SIZE, generator=random).to(dtype)
    out = masked.decode(q, Pages(k_pages, v_pages), table, lengths, scale=SCALE, window=window)
    for b, length in enumerate(lengths.tolist()):
        k, v = (
            pages[table[b].long()].transpose(0, 1).flatten(1, 2)[:, :length]
            for pages in (k_pages, v_pages)
        )
        expected, _ = written_out(q[b][:, None], k, v, within(1, length, window))
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert torch.allclose(out[b].double(), expected[0], atol=tolerance)
