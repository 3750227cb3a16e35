"""The Triton kernels against their torch twins, in Triton's interpreter where there is no GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from lookm import CachePolicy
from lookm.attention import choose
from lookm.attention.kernels import triton_decode, triton_linear, triton_merge
from lookm.attention.kernels.gpu import few_lengths
from lookm.errors import ConfigError
from lookm.pages import Pages
from tests.lookm.attention import triton_cases as cases
from tests.lookm.tiny import answers, random_prompt, tiny_engine, tiny_llava

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter multiplies matrices of bfloat16 by their bits: those run on a GPU only.
HALF = [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]
HAS_FP8 = DEVICE == "cpu" or torch.cuda.get_device_capability() >= (8, 9)
BYTES = ["int8", "fp8"] if HAS_FP8 else ["int8"]
few = settings(max_examples=5, deadline=None, derandomize=True)
heads = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (5, 1)])
sizes = st.sampled_from([7, 16, 64, 80, 96, 128, 256])


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[Any]:
    """The interpreter runs programs one after the other."""
    if DEVICE == "cpu":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton_decode, "WANTED_PROGRAMS", 8)
            yield
    else:
        yield


@few
@given(heads, sizes, st.lists(st.integers(0, 70), min_size=1, max_size=3), st.sampled_from([4, 16]))
def test_decode_equals_the_reference(shape: Any, size: Any, lengths: Any, page_rows: Any) -> None:
    cases.check_decode(*shape, size, lengths, page_rows=page_rows, device=DEVICE)


@pytest.mark.parametrize("dtype", HALF)
def test_decode_in_half_precision_is_as_close_as_the_type_allows(dtype: Any) -> None:
    cases.check_decode(4, 1, 80, [40, 0, 90], dtype=dtype, device=DEVICE)


@few
@given(heads, sizes, st.lists(st.integers(0, 70), min_size=1, max_size=3), st.sampled_from([4, 16]))
@pytest.mark.parametrize("stored", BYTES)
def test_decode_of_pages_of_bytes_equals_the_reference(
    stored: Any, shape: Any, size: Any, lengths: Any, page_rows: Any
) -> None:
    where = {"page_rows": page_rows, "device": DEVICE, "stored": stored}
    cases.check_decode(*shape, size, lengths, **where)


@pytest.mark.parametrize("stored", BYTES)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_decode_of_bytes_in_half_precision_is_as_close(
    kv_heads: Any, dtype: Any, stored: Any
) -> None:
    cases.check_decode(4, kv_heads, 80, [40, 0, 90], dtype=dtype, device=DEVICE, stored=stored)


@pytest.mark.parametrize("dtype", HALF)
def test_decode_in_half_precision_without_groups_is_as_close(dtype: Any) -> None:
    cases.check_decode(2, 2, 80, [40, 0, 9], dtype=dtype, device=DEVICE)


def test_decode_splits_long_rows_and_adds_them_up() -> None:
    assert triton_decode.num_splits(1) > 1
    cases.check_decode(1, 1, 16, [1500], device=DEVICE)


def test_the_comparison_sees_a_wrong_page() -> None:
    q, pages, table, lengths = cases.paged(4, 2, 16, [40], device=DEVICE)
    right = triton_decode.decode(q, pages, table, lengths, scale=0.2)
    wrong = triton_decode.decode(q, pages, table.flip(1).contiguous(), lengths, scale=0.2)
    assert not torch.allclose(right, wrong, atol=1e-3)


def test_very_large_scores_do_not_overflow() -> None:
    q, pages, table, lengths = cases.paged(4, 2, 16, [40], device=DEVICE)
    large = Pages(pages.k_PKND * 100, pages.v_PKND)
    found = triton_decode.decode(q * 100, large, table, lengths, scale=1.0)
    assert torch.isfinite(found).all()


@few
@given(st.integers(1, 20), st.integers(1, 5), sizes, st.sampled_from([4, 16]))
def test_write_puts_every_row_in_its_place_and_nothing_elsewhere(
    rows: Any, kv_heads: Any, size: Any, page_rows: Any
) -> None:
    cases.check_write(rows, kv_heads, size, page_rows, device=DEVICE)


@few
@given(st.integers(1, 20), st.integers(1, 5), sizes, st.sampled_from([4, 16]))
@pytest.mark.parametrize("stored", BYTES)
def test_write_packs_rows_to_the_bits_of_the_reference(
    stored: Any, rows: Any, kv_heads: Any, size: Any, page_rows: Any
) -> None:
    cases.check_write(rows, kv_heads, size, page_rows, device=DEVICE, stored=stored)


@few
@given(heads, st.integers(1, 80), sizes, st.integers(0, 100))
def test_prefill_gives_the_output_and_every_sum(
    shape: Any, tokens: Any, size: Any, window: Any
) -> None:
    cases.check_prefill(*shape, tokens, size, window, device=DEVICE)


@pytest.mark.parametrize("dtype", HALF)
def test_prefill_in_half_precision_is_as_close_as_the_type_allows(dtype: Any) -> None:
    cases.check_prefill(4, 2, 70, 16, 5, dtype=dtype, device=DEVICE)


@few
@given(st.data())
def test_extension_sees_what_came_before_and_no_future(data: Any) -> None:
    rows = data.draw(st.integers(1, 80))
    queries = data.draw(st.integers(1, rows))
    cases.check_extend(*data.draw(heads), queries, rows, data.draw(sizes), device=DEVICE)


@pytest.mark.parametrize("first_row", [0, 31, 32, 63, 69])
def test_sums_may_begin_at_any_row(first_row: Any) -> None:
    cases.check_sums_from(first_row, 4, 2, 70, 16, device=DEVICE)


@pytest.mark.parametrize("first_row", [0, 63, 64, 130, 190, 199])
def test_sums_of_wide_tiles_may_begin_at_any_row(first_row: Any) -> None:
    cases.check_sums_from(first_row, 2, 1, 200, 16, dtype=torch.float16, device=DEVICE)


@few
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70), sizes)
def test_nearest_equals_the_policys_own_search(
    num_heads: Any, num_kept: Any, num_evicted: Any, size: Any
) -> None:
    cases.check_nearest(num_heads, num_kept, num_evicted, size, device=DEVICE)


@few
@given(st.integers(1, 2), st.integers(1, 12), st.integers(1, 60), sizes)
def test_combine_equals_the_policys_own(
    num_heads: Any, num_kept: Any, num_evicted: Any, size: Any
) -> None:
    cases.check_combine(num_heads, num_kept, num_evicted, size, device=DEVICE)


@pytest.mark.parametrize("dtype", HALF)
def test_merging_in_half_precision_is_as_close_as_the_type_allows(dtype: Any) -> None:
    cases.check_nearest(2, 40, 33, 80, dtype=dtype, device=DEVICE)
    cases.check_combine(2, 9, 33, 80, dtype=dtype, device=DEVICE)


PARTS = st.sets(st.sampled_from(["bias", "norm", "gate", "sum"]))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 32), st.integers(1, 300), st.integers(1, 140), PARTS)
def test_linear_equals_torchs_and_rows_do_not_touch_each_other(
    rows: Any, inputs: Any, outputs: Any, parts: Any
) -> None:
    cases.check_linear(rows, inputs, outputs, parts, device=DEVICE)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("parts", [(), ("bias", "gate", "sum")])
def test_linear_in_half_precision_is_as_close_as_the_type_allows(parts: Any, dtype: Any) -> None:
    cases.check_linear(5, 300, 70, parts, dtype=dtype, device=DEVICE)


def test_the_launchers_refuse_what_the_kernels_cannot_read() -> None:
    q, pages, table, lengths = cases.paged(4, 2, 16, [40], device=DEVICE)
    k, v = pages.k_PKND, pages.v_PKND
    for wrong in (
        (q.double(), Pages(k.double(), v.double()), table, lengths),
        (q, Pages(k.transpose(1, 2), v.transpose(1, 2)), table, lengths),
        (q, pages, table.long(), lengths),
        (q, pages, table, lengths.float()),
        (q[:, :3], pages, table, lengths),
        (q, pages, table[:0], lengths),
        (q, Pages(k.to(torch.int8), v.to(torch.int8)), table, lengths),
        (q, Pages(k, v, k[..., 0].contiguous(), v[..., 0].contiguous()), table, lengths),
    ):
        with pytest.raises(AssertionError):
            triton_decode.decode(*wrong, scale=1.0)
    wide = cases.noise(2, 3, 300, device=DEVICE)
    with pytest.raises(AssertionError, match="up to 256"):
        triton_merge.nearest(wide, wide)
    with pytest.raises(AssertionError, match="33 rows"):
        triton_linear.linear(wide[0].repeat(11, 1), wide[0], None, triton_linear.TILES[0])


@pytest.mark.parametrize("stored", ["auto", "int8"])
@pytest.mark.parametrize("policy", [CachePolicy(), CachePolicy("look-m", keep=0.3)])
def test_an_engine_on_the_kernels_answers_as_on_the_reference(policy: Any, stored: Any) -> None:
    request = random_prompt(2, seed=5).request("a", policy, max_tokens=3)
    found = {}
    for name in ("triton", "reference"):
        engine = tiny_engine(tiny_llava().to(DEVICE), attention=name, kv_cache_dtype=stored)
        found[name] = answers(engine, [request])["a"]
    assert found["triton"] == found["reference"]


@pytest.mark.skipif(DEVICE == "cuda", reason="asks for a machine without a GPU")
def test_without_a_gpu_or_the_interpreter_triton_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ConfigError, match="device is cpu"):
        choose("triton", "cpu")


def test_float64_has_no_kernel() -> None:
    with pytest.raises(ConfigError, match="float64"):
        choose("triton", DEVICE, torch.float64)


@pytest.mark.parametrize(
    ("tokens", "length"),
    [(1, 1), (16, 16), (17, 18), (1024, 1024), (1025, 1152), (4096, 4096), (4097, 4608)],
)
def test_a_library_that_plans_each_length_sees_few_of_them(tokens: int, length: int) -> None:
    assert few_lengths(tokens) == length
