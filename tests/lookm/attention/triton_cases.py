"""What every Triton kernel must do, at any size: run by the interpreter on CPU, and on a GPU."""

from typing import Any

import torch

from lookm import pages
from lookm.attention.kernels.gpu import TritonAttention, flash
from lookm.attention.kernels.triton_linear import TILES, linear
from lookm.attention.kernels.triton_merge import combine, nearest
from lookm.attention.kernels.triton_sums import column_sums
from lookm.attention.kernels.triton_write import write_rows
from lookm.attention.reference import ReferenceAttention, window_sums
from lookm.kv_format import pack
from lookm.pages import PageLayout, Pages
from lookm.policy import merges
from lookm.types import Needs

#: Absolute error against float64 of outputs of size 1, by type.
ATOL = {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def noise(
    *shape: Any, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Any:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)


def paged(
    heads: Any,
    kv_heads: Any,
    size: Any,
    lengths: Any,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    page_rows: int = 16,
    stored: Any = "auto",
) -> Any:
    """Queries, pages filled with noise everywhere, a shuffled table, lengths."""
    width = max(1, -(-max(lengths) // page_rows))
    num_pages = len(lengths) * width + 3
    shape, where = (num_pages, kv_heads, page_rows, size), {"dtype": dtype, "device": device}
    q = noise(len(lengths), heads, size, **where)
    k, v = (noise(*shape, seed=i, **where) for i in (1, 2))
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(size))
    table = order[: len(lengths) * width].view(len(lengths), width).to(device, torch.int32)
    filled = Pages(k, v)
    if stored != "auto":
        parts = (pack(part, STORED[stored]) for part in (k, v))
        (k, k_scale), (v, v_scale) = parts
        filled = Pages(k, v, k_scale, v_scale)
    return q, filled, table, torch.tensor(lengths, device=device)


STORED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


def plain(filled: Pages, dtype: torch.dtype = torch.float64) -> Pages:
    """The same pages without scales."""
    return Pages(*filled.taken(slice(None), dtype))


def check_decode(
    heads: Any,
    kv_heads: Any,
    size: Any,
    lengths: Any,
    *,
    dtype: torch.dtype = torch.float32,
    **where: Any,
) -> None:
    case = paged(heads, kv_heads, size, lengths, dtype=dtype, **where)
    q, filled, *rest = case
    exact = ReferenceAttention().decode(q.double(), plain(filled), *rest, scale=size**-0.5)
    found = TritonAttention().decode(*case, scale=size**-0.5)
    assert found.dtype == dtype
    assert (found - exact).abs().max() < ATOL[dtype]
    for b, length in enumerate(lengths):
        assert length or not found[b].any(), "a sequence of length 0 gives 0"


def check_write(
    num_rows: Any,
    kv_heads: Any,
    size: Any,
    page_rows: Any,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    stored: Any = "auto",
) -> None:
    layout = PageLayout(kv_heads, page_rows, size, dtype, stored)
    slow, fast = (layout.empty(num_rows + 2, device) for _ in range(2))
    places = torch.randperm((num_rows + 2) * page_rows)[:num_rows].to(device)
    k, v = (noise(kv_heads, num_rows, size, seed=i, device=device).transpose(0, 1) for i in (1, 2))
    k[num_rows // 2] = 0
    pages.write_rows(slow, places // page_rows, places % page_rows, k, v)
    write_rows(fast, places // page_rows, places % page_rows, k, v)
    for expected, found in zip(slow.parts, fast.parts, strict=True):
        if stored == "fp8" and device == "cpu":
            # Triton's interpreter loses the carry of a float8 that rounds up to a power of two.
            lost = expected.float() == 2 * found.float()
            found = torch.where(lost, expected.float(), found.float())
        assert torch.equal(expected.float(), found.float())


def check_linear(
    rows: Any,
    inputs: Any,
    outputs: Any,
    parts: Any = (),
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """By every tile, with any of "bias", "norm", "gate" and "sum" around it.

    And a row alone gets what it gets among others.
    """
    half = {"dtype": dtype, "device": device}
    gated = "gate" in parts
    x = noise(rows, 2 * inputs, **half)[:, :inputs]
    weight = noise(outputs * (1 + gated), inputs, seed=1, **half) / inputs**0.5
    bias = noise(len(weight), seed=2, **half) if "bias" in parts else None
    norm = (1 + noise(inputs, seed=3, **half) / 4, 1e-5) if "norm" in parts else None
    residual = noise(rows, outputs, seed=4, **half) if "sum" in parts else None
    exact = x.double()
    if norm:
        exact = norm[0].double() * exact / (exact.square().mean(1, keepdim=True) + 1e-5).sqrt()
    exact = exact @ weight.double().T + (0 if bias is None else bias.double())
    if gated:
        exact = torch.nn.functional.silu(exact[:, :outputs]) * exact[:, outputs:]
    exact = exact + (0 if residual is None else residual.double())
    for tile in TILES:
        found = linear(x, weight, bias, tile, norm=norm, gated=gated, residual_RO=residual)
        assert found.dtype == dtype
        assert (found - exact).abs().max() < ATOL[dtype] * (1 + exact.abs().max())
        if rows <= 16:
            last = None if residual is None else residual[-1:]
            alone = linear(x[-1:], weight, bias, tile, norm=norm, gated=gated, residual_RO=last)
            assert torch.equal(alone, found[-1:])


def prompt(
    heads: Any,
    kv_heads: Any,
    rows: Any,
    size: Any,
    *,
    queries: Any = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Any:
    """Queries and rows as transformers leaves them: the tokens first, seen through a transpose."""
    queries = rows if queries is None else queries
    q = noise(queries, heads, size, dtype=dtype, device=device).transpose(0, 1)
    k, v = (
        noise(rows, kv_heads, size, seed=i, dtype=dtype, device=device).transpose(0, 1)
        for i in (1, 2)
    )
    return q, k, v


def check_prefill(
    heads: Any,
    kv_heads: Any,
    tokens: Any,
    size: Any,
    window: Any,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """Output, sums, squares and window against float64, and the sum of all sums."""
    q, k, v = prompt(heads, kv_heads, tokens, size, dtype=dtype, device=device)
    scale, needs = size**-0.5, Needs(sums=True, squares=True, window=window)
    out, found = TritonAttention().prefill(q, k, v, scale=scale, needs=needs)
    wide = [part.double() for part in (q, k, v)]
    exact_out, exact = ReferenceAttention().prefill(*wide, scale=scale, needs=needs)
    assert out.dtype == dtype
    assert (out - exact_out).abs().max() < ATOL[dtype]
    close = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 0.01, "atol": 2e-3}
    torch.testing.assert_close(found.sums_KT.double(), exact.sums_KT, **close)
    torch.testing.assert_close(found.squares_KT.double(), exact.squares_KT, **close)
    if window:
        expected = window_sums(wide[0], wide[1], scale, min(window, tokens))
        torch.testing.assert_close(found.window_KT.double(), expected, **close)
    else:
        assert found.window_KT is None
    rows = found.sums_KT.double().sum(1)
    assert torch.allclose(rows, torch.full_like(rows, tokens * heads / kv_heads), rtol=2e-3)
    again = TritonAttention().prefill(q, k, v, scale=scale, needs=needs)[1]
    assert torch.equal(again.sums_KT, found.sums_KT), "the same bits every time"
    plain, nothing = TritonAttention().prefill(q, k, v, scale=scale, needs=Needs())
    assert torch.equal(plain, out)
    assert nothing.sums_KT is None


def check_extend(
    heads: Any,
    kv_heads: Any,
    queries: Any,
    rows: Any,
    size: Any,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    q, k, v = prompt(heads, kv_heads, rows, size, queries=queries, dtype=dtype, device=device)
    wide = [part.double() for part in (q, k, v)]
    exact = ReferenceAttention().prefill(*wide, scale=size**-0.5, needs=Needs())[0]
    found = TritonAttention().prefill(q, k, v, scale=size**-0.5, needs=Needs())[0]
    assert (found - exact).abs().max() < ATOL[dtype]
    needs = Needs(sums=True, squares=True, window=5)
    out, sums = TritonAttention().prefill(q, k, v, scale=size**-0.5, needs=needs)
    _, exact_sums = ReferenceAttention().prefill(*wide, scale=size**-0.5, needs=needs)
    assert (out - exact).abs().max() < ATOL[dtype]
    close = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 0.01, "atol": 2e-3}
    for name in ("sums_KT", "squares_KT", "window_KT"):
        got, expected = getattr(sums, name), getattr(exact_sums, name)
        torch.testing.assert_close(got.double(), expected, **close)


def check_sums_from(
    first_row: Any,
    heads: Any,
    kv_heads: Any,
    tokens: Any,
    size: Any,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    """A column sum from some row on is what the rows before leave of the whole sum."""
    q, k, v = prompt(heads, kv_heads, tokens, size, dtype=dtype, device=device)
    _, lse = flash(q, k, v, scale=size**-0.5)
    found, _ = column_sums(q, k, lse, scale=size**-0.5, first_row=first_row)
    exact = window_sums(q.double(), k.double(), size**-0.5, tokens - first_row)
    torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=2e-5)


def _coarse(x: torch.Tensor) -> torch.Tensor:
    return (x * 64).round() / 64


def check_nearest(
    num_heads: Any,
    num_kept: Any,
    num_evicted: Any,
    size: Any,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    # Numbers whose sums are exact in any order: in the interpreter a product is the machine's own
    # BLAS, which on some adds up a tile's last row otherwise than its first.
    kept = _coarse(noise(num_heads, num_kept, size, dtype=dtype, device=device))
    evicted = _coarse(noise(num_heads, num_evicted, size, seed=1, dtype=dtype, device=device))
    kept[:, -1] = kept[:, 0]  # equal keys: the first is taken
    evicted[0, 0] = 0  # no direction
    target, cosine = nearest(kept, evicted)
    exact_target, exact_cosine = merges.nearest_by_cosine(kept.double(), evicted.double())
    assert target.dtype == torch.int64
    torch.testing.assert_close(cosine.double(), exact_cosine, rtol=0, atol=2e-5)
    assert cosine[0, 0] == 0
    if num_kept > 1:
        assert not (target == num_kept - 1).any(), "the last key equals the first"
    taken = torch.nn.functional.cosine_similarity(
        kept.double().gather(1, target[..., None].expand(-1, -1, size)), evicted.double(), dim=2
    )
    torch.testing.assert_close(taken, exact_cosine, rtol=0, atol=2e-5)
    assert (target == exact_target).double().mean() > 0.9


def check_combine(
    num_heads: Any,
    num_kept: Any,
    num_evicted: Any,
    size: Any,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> None:
    kept = noise(num_heads, num_kept, size, dtype=dtype, device=device)
    evicted = noise(num_heads, num_evicted, size, seed=1, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(size)
    target = torch.randint(0, num_kept, (num_heads, num_evicted), generator=generator).to(device)
    target[:, : num_evicted // 2] = num_kept // 2  # one row is popular
    weight = noise(num_heads, num_evicted, seed=2, device=device).abs()
    centre = 1 + noise(num_heads, num_kept, seed=3, device=device).abs()
    (found,) = combine([(kept, evicted)], target, weight, centre)
    wide = (kept.double(), evicted.double(), target, weight.double(), centre.double())
    exact = merges.combine(*wide)
    close = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=close, atol=close)
    again = combine([(kept, evicted), (kept, evicted)], target, weight, centre)
    assert all(torch.equal(found, other) for other in again), "no order of arrival"
    for head in range(num_heads):
        untouched = sorted(set(range(num_kept)) - set(target[head].tolist()))
        assert torch.equal(found[head, untouched], kept[head, untouched])
