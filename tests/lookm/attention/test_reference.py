"""The reference against whole softmax matrices, and its own parts against each other."""

from typing import Any

import pytest
import torch

from lookm.attention import ReferenceAttention, choose, reference, statistics
from lookm.errors import ConfigError
from lookm.pages import Pages
from lookm.types import Needs

ALL = Needs(sums=True, squares=True, window=7)
SHAPES = [(2, 2, 16), (4, 2, 7), (6, 1, 33)]
attention = ReferenceAttention()


def layer(
    num_tokens: Any,
    heads: Any,
    kv_heads: Any,
    head_size: Any,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Any:
    torch.manual_seed(seed)
    q_HTD = torch.randn(heads, num_tokens, head_size)
    k_KTD, v_KTD = torch.randn(2, kv_heads, num_tokens, head_size)
    return [tensor.to(dtype) for tensor in (q_HTD, k_KTD, v_KTD)]


def naive(q_HTD: Any, k_KTD: Any, v_KTD: Any, scale: Any) -> Any:
    """Output `[T, H, D]` and weights `[K, G, T, T]`, float64."""
    q, k, v = q_HTD.double(), k_KTD.double(), v_KTD.double()
    num_tokens = q.shape[1]
    group = q.shape[0] // k.shape[0]
    logits = q @ k.repeat_interleave(group, 0).transpose(1, 2) * scale
    logits[:, torch.ones(num_tokens, num_tokens).triu(1).bool()] = -torch.inf
    weights = logits.softmax(-1)
    out = weights @ v.repeat_interleave(group, 0)
    return out.transpose(0, 1), weights.view(k.shape[0], group, num_tokens, num_tokens)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_tokens", [1, 5, 64, 65, 200])
def test_prefill_equals_the_whole_softmax(shape: Any, num_tokens: Any) -> None:
    q, k, v = layer(num_tokens, *shape)
    expected, weights = naive(q, k, v, 0.3)
    plain, nothing = attention.prefill(q, k, v, scale=0.3, needs=Needs())
    fused, found = attention.prefill(q, k, v, scale=0.3, needs=ALL)
    torch.testing.assert_close(plain.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused.double(), expected, rtol=1e-5, atol=1e-5)
    sums = {
        "sums_KT": weights.sum((1, 2)),
        "squares_KT": weights.square().sum((1, 2)),
        "window_KT": weights[:, :, -7:].sum((1, 2)),
    }
    for name, expected_KT in sums.items():
        assert getattr(nothing, name) is None
        got_KT = getattr(found, name)
        assert got_KT.dtype == torch.float32
        torch.testing.assert_close(got_KT.double(), expected_KT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_sums_of_a_head_add_up_to_the_tokens_times_the_group(shape: Any) -> None:
    heads, kv_heads, _ = shape
    q, k, v = layer(150, *shape)
    _, found = attention.prefill(q, k, v, scale=1.0, needs=ALL)
    total = torch.full((kv_heads,), 150.0 * heads / kv_heads)
    torch.testing.assert_close(found.sums_KT.sum(1), total)
    torch.testing.assert_close(found.window_KT.sum(1), total / 150 * 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_float64_softmax(dtype: Any) -> None:
    q, k, v = layer(200, 4, 2, 16, dtype=dtype)
    expected, weights = naive(q, k, v, 0.25)
    out, found = attention.prefill(q, k, v, scale=0.25, needs=ALL)
    assert out.dtype == dtype
    assert found.sums_KT.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.02)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    sums = weights.sum((1, 2))
    torch.testing.assert_close(found.sums_KT.double(), sums, rtol=tolerance, atol=tolerance)


def test_statistics_alone_equal_those_of_the_fused_pass_and_float64_stays_float64() -> None:
    q, k, v = layer(130, 4, 2, 8, dtype=torch.float64)
    _, fused = attention.prefill(q, k, v, scale=0.3, needs=ALL)
    alone = statistics(q, k, scale=0.3, needs=ALL)
    _, weights = naive(q, k, v, 0.3)
    for name in ("sums_KT", "squares_KT", "window_KT"):
        assert torch.equal(getattr(alone, name), getattr(fused, name))
    torch.testing.assert_close(alone.sums_KT, weights.sum((1, 2)), rtol=1e-12, atol=1e-12)


def test_the_window_alone_needs_no_fused_pass_and_may_exceed_the_prompt() -> None:
    q, k, v = layer(20, 4, 2, 8)
    _, weights = naive(q, k, v, 0.3)
    out, found = attention.prefill(q, k, v, scale=0.3, needs=Needs(window=32))
    assert found.sums_KT is None
    torch.testing.assert_close(found.window_KT, weights.sum((1, 2)).float())
    torch.testing.assert_close(out, naive(q, k, v, 0.3)[0].float())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cut", [0, 1, 40, 299])
def test_extend_equals_the_rows_of_a_prefill_from_the_cut_on(shape: Any, cut: Any) -> None:
    q, k, v = layer(300, *shape)
    whole, _ = attention.prefill(q, k, v, scale=0.3, needs=Needs())
    part = attention.prefill(q[:, cut:], k, v, scale=0.3, needs=Needs())[0]
    torch.testing.assert_close(part, whole[cut:], rtol=1e-5, atol=1e-5)


def paged(
    lengths: Any,
    heads: Any,
    kv_heads: Any,
    head_size: Any,
    *,
    page_tokens: int = 4,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Shuffled pages, tables padded with page 0, and the plain rows of each sequence."""
    torch.manual_seed(len(lengths))
    per_row = [-(-length // page_tokens) for length in lengths]
    num_pages = sum(per_row) + 3
    k_pages, v_pages = torch.randn(2, num_pages, kv_heads, page_tokens, head_size).to(dtype)
    free = (torch.randperm(num_pages - 1) + 1).tolist()
    table = torch.zeros(len(lengths), max(per_row) + 2, dtype=torch.int32)
    rows = []
    for b, (length, count) in enumerate(zip(lengths, per_row, strict=True)):
        pages, free = free[:count], free[count:]
        table[b, :count] = torch.tensor(pages, dtype=torch.int32)
        rows.append(
            [p[pages].transpose(0, 1).flatten(1, 2)[:, :length] for p in (k_pages, v_pages)]
        )
    q_BHD = torch.randn(len(lengths), heads, head_size).to(dtype)
    return (q_BHD, Pages(k_pages, v_pages), table, torch.tensor(lengths)), rows


@pytest.mark.parametrize("max_padded", [0, 1 << 19])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", [[1], [9, 9, 9], [3, 16, 17, 5], [0, 4, 0], [200, 1, 2, 0, 7]])
def test_decode_equals_extend_over_each_sequences_own_rows(
    shape: Any, lengths: Any, max_padded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "MAX_PADDED_ELEMENTS", max_padded)
    arguments, rows = paged(lengths, *shape)
    tensors = [arguments[0], arguments[1].k_PKND, arguments[1].v_PKND, *arguments[2:]]
    before = [tensor.clone() for tensor in tensors]
    out_BHD = attention.decode(*arguments, scale=0.3)
    for b, (k_KSD, v_KSD) in enumerate(rows):
        if lengths[b] == 0:
            assert torch.equal(out_BHD[b], torch.zeros_like(out_BHD[b]))
            continue
        expected_1HD = attention.prefill(
            arguments[0][b, :, None], k_KSD, v_KSD, scale=0.3, needs=Needs()
        )[0]
        torch.testing.assert_close(out_BHD[b], expected_1HD[0], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(new, old) for new, old in zip(tensors, before, strict=True))


def test_decode_in_bfloat16_stays_near_float32() -> None:
    arguments, _ = paged([30, 12, 90], 4, 2, 16, dtype=torch.bfloat16)
    out_BHD = attention.decode(*arguments, scale=0.25)
    q, pages, *rest = arguments
    wide = Pages(pages.k_PKND.float(), pages.v_PKND.float())
    exact = attention.decode(q.float(), wide, *rest, scale=0.25)
    assert out_BHD.dtype == torch.bfloat16
    torch.testing.assert_close(out_BHD.float(), exact, rtol=0.02, atol=0.02)


def test_decode_of_empty_sequences_only_is_zero() -> None:
    arguments, _ = paged([4, 4], 4, 2, 8)
    out_BHD = attention.decode(*arguments[:3], torch.zeros(2, dtype=torch.int64), scale=0.3)
    assert torch.equal(out_BHD, torch.zeros_like(out_BHD))


def test_the_reference_is_chosen_by_name_and_unknown_names_are_refused() -> None:
    assert choose("reference", torch.device("cpu")).name == "reference"
    with pytest.raises(ConfigError, match="reference"):
        choose("fast", torch.device("cpu"))
