"""The C++ decode kernel against its torch twin, and what happens where it cannot be built."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookm.attention import ReferenceAttention, choose, spread
from lookm.attention.kernels import build, cpu_pages
from lookm.cache import PagePool
from lookm.errors import ConfigError
from lookm.kv_format import pack
from lookm.pages import PageLayout, Pages, read_rows, write_rows
from lookm.policy.merges import combine, lengthened, nearest_by_cosine
from lookm.types import Needs
from tests.lookm.tiny import answers, generate, random_prompt, tiny_engine, tiny_llava

needs_compiler = pytest.mark.skipif(
    bool(build.missing_tools()), reason=f"missing: {build.missing_tools()}"
)


@pytest.fixture(scope="module")
def kernel() -> Any:
    return choose("cpu", "cpu").attention


def case(
    heads: Any,
    kv_heads: Any,
    size: Any,
    lengths: Any,
    dtype: torch.dtype = torch.float32,
    page_rows: int = 16,
    stored: Any = "auto",
) -> Any:
    """Queries, pages filled with noise everywhere, a shuffled table, lengths."""
    generator = torch.Generator().manual_seed(heads * 1000 + size)
    width = max(1, -(-max(lengths) // page_rows))
    pages = len(lengths) * width + 3
    shape = (pages, kv_heads, page_rows, size)
    q = torch.randn(len(lengths), heads, size, generator=generator).to(dtype)
    k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    table = torch.randperm(pages, generator=generator)[: len(lengths) * width]
    table = table.view(len(lengths), width).to(torch.int32)
    filled = Pages(k, v)
    if stored == "int8":
        (k, k_scale), (v, v_scale) = (pack(part, torch.int8) for part in (k, 5 * v))
        filled = Pages(k, v, k_scale, v_scale)
    return q, filled, table, torch.tensor(lengths)


SHAPES = [(4, 4, 64), (4, 2, 16), (6, 1, 80), (8, 8, 128), (2, 1, 256), (3, 3, 7)]
LENGTHS = [[1], [16, 17], [0, 5, 33], [100, 1, 64, 31], [256, 257, 0, 700]]


@needs_compiler
@pytest.mark.parametrize(("shape", "lengths"), list(itertools.product(SHAPES, LENGTHS)))
def test_decode_equals_the_reference(kernel: Any, shape: Any, lengths: Any) -> None:
    args = case(*shape, lengths)
    expected = ReferenceAttention().decode(*args, scale=0.2)
    assert torch.allclose(kernel.decode(*args, scale=0.2), expected, atol=2e-6)


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_decode_in_bfloat16_is_as_close_to_float64_as_the_reference(
    kernel: Any, shape: Any
) -> None:
    args = case(*shape, [40, 3, 90], torch.bfloat16)
    q, pages, *rest = args
    wide = Pages(pages.k_PKND.double(), pages.v_PKND.double())
    exact = ReferenceAttention().decode(q.double(), wide, *rest, scale=0.2)
    assert (kernel.decode(*args, scale=0.2) - exact).abs().max() < 0.02


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "lengths"), list(itertools.product(SHAPES, LENGTHS[2:])))
def test_decode_of_bytes_is_that_of_the_numbers_they_stand_for(
    kernel: Any, shape: Any, lengths: Any, dtype: Any
) -> None:
    q, pages, *rest = case(*shape, lengths, dtype, stored="int8")
    wide = Pages(*pages.taken(slice(None), torch.float64))
    exact = ReferenceAttention().decode(q.double(), wide, *rest, scale=0.2)
    near = 1e-5 if dtype == torch.float32 else 0.1  # of numbers up to 10
    for attention in (kernel, ReferenceAttention()):
        found = attention.decode(q, pages, *rest, scale=0.2)
        assert found.dtype == dtype
        assert (found - exact).abs().max() < near


@needs_compiler
@pytest.mark.parametrize("stored", ["auto", "int8"])
def test_a_sequence_decodes_to_the_same_bits_alone_and_in_a_batch(kernel: Any, stored: Any) -> None:
    lengths = [700, 3, 0, 300]
    q, pages, table, lengths = case(4, 2, 64, lengths, torch.bfloat16, stored=stored)
    together = kernel.decode(q, pages, table, lengths, scale=0.2)
    for b in range(4):
        one = slice(b, b + 1)
        alone = kernel.decode(q[one], pages, table[one].contiguous(), lengths[one], scale=0.2)
        assert torch.equal(alone[0], together[b])


@needs_compiler
def test_the_comparison_sees_a_wrong_page(kernel: Any) -> None:
    q, pages, table, lengths = case(4, 2, 16, [40])
    other = kernel.decode(q, pages, table.flip(1), lengths, scale=0.2)
    assert not torch.allclose(other, kernel.decode(q, pages, table, lengths, scale=0.2), atol=1e-3)


@needs_compiler
def test_very_large_scores_do_not_overflow(kernel: Any) -> None:
    q, pages, table, lengths = case(4, 2, 16, [40])
    args = (q * 100, Pages(pages.k_PKND * 100, pages.v_PKND), table, lengths)
    expected = ReferenceAttention().decode(*args, scale=1.0)
    assert torch.allclose(kernel.decode(*args, scale=1.0), expected, atol=1e-5)


@needs_compiler
def test_the_launcher_refuses_what_the_kernel_cannot_read(kernel: Any) -> None:
    q, pages, table, lengths = case(4, 2, 16, [40])
    k, v = pages.k_PKND, pages.v_PKND
    for wrong in (
        (q.double(), Pages(k.double(), v.double()), table, lengths),
        (q, Pages(k.transpose(1, 2), v.transpose(1, 2)), table, lengths),
        (q, pages, table.long(), lengths),
        (q, pages, table, lengths.int()),
        (q[:, :3], pages, table, lengths),
        (q, pages, table[:0], lengths),
        (q, Pages(k.to(torch.int8), v.to(torch.int8)), table, lengths),
        (q, Pages(k, v, k[..., 0].contiguous(), v[..., 0].contiguous()), table, lengths),
        (q, Pages(k.to(torch.int8), v.to(torch.int8), k[..., 0], v[..., 0]), table, lengths),
        (q, replace(case(4, 2, 16, [40], stored="int8")[1], v_scale_PKN=None), table, lengths),
    ):
        with pytest.raises(AssertionError):
            kernel.decode(*wrong, scale=1.0)


@needs_compiler
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_an_engine_on_the_kernel_equals_generate(kv_heads: Any) -> None:
    prompts = [random_prompt(n, seed=n) for n in (0, 2, 5)]
    engine = tiny_engine(tiny_llava(kv_heads=kv_heads), attention="cpu")
    got = answers(engine, [p.request(str(i)) for i, p in enumerate(prompts)], every=2)
    for i, prompt in enumerate(prompts):
        assert got[str(i)] == generate(tiny_llava(kv_heads=kv_heads), prompt, 12)


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.usefixtures("nothing_built")
def test_without_a_compiler_auto_is_the_reference_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "missing_tools", lambda: ["ninja"])
    assert choose("auto", "cpu").name == "reference"
    assert "ninja is missing" in caplog.text
    with pytest.raises(ConfigError, match="ninja is missing"):
        choose("cpu", "cpu")


@needs_compiler
def test_a_kernel_built_before_needs_no_compiler(
    kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "missing_tools", lambda: ["ninja"])
    assert choose("auto", "cpu").name == "cpu"


@pytest.mark.usefixtures("nothing_built")
def test_a_kernel_that_does_not_compile_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("Error building extension\nmany\nlines")

    monkeypatch.setattr(build, "missing_tools", list)
    monkeypatch.setattr(build, "load_kernel", fail)
    assert choose("auto", "cpu").name == "reference"
    assert "cannot be built: Error building extension" in caplog.text
    assert "many" not in caplog.text


def test_float16_has_no_kernel() -> None:
    with pytest.raises(ConfigError, match="float16"):
        choose("cpu", "cpu", torch.float16)


def prompt(heads: Any, kv_heads: Any, tokens: Any, size: Any) -> Any:
    generator = torch.Generator().manual_seed(tokens + size)
    shapes = ((heads, tokens, size), (kv_heads, tokens, size), (kv_heads, tokens, size))
    return [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]


@needs_compiler
@pytest.mark.parametrize("shape", [(4, 4, 64), (4, 2, 16), (6, 1, 80), (2, 2, 128), (3, 3, 7)])
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 257, 600])
def test_prefill_with_sums_is_as_close_to_float64_as_bfloat16_allows(
    kernel: Any, shape: Any, tokens: Any
) -> None:
    heads, kv_heads, size = shape
    q, k, v = prompt(heads, kv_heads, tokens, size)
    needs = Needs(sums=True, squares=True, window=5)
    out, found = kernel.prefill(q, k, v, scale=size**-0.5, needs=needs)
    exact_out, exact = ReferenceAttention().prefill(
        q.double(), k.double(), v.double(), scale=size**-0.5, needs=needs
    )
    assert (out - exact_out).abs().max() < 0.02
    assert torch.allclose(found.sums_KT.double(), exact.sums_KT, rtol=0.01, atol=2e-3)
    assert torch.allclose(found.squares_KT.double(), exact.squares_KT, rtol=0.02, atol=2e-3)
    assert torch.allclose(found.window_KT.double(), exact.window_KT, rtol=0.01, atol=2e-3)
    rows = found.sums_KT.double().sum(1)
    assert torch.allclose(rows, torch.full_like(rows, tokens * heads / kv_heads), rtol=1e-3)


@needs_compiler
@pytest.mark.parametrize(("queries", "tokens"), [(1, 40), (70, 333), (64, 128), (300, 301)])
def test_the_last_rows_of_a_prompt_give_their_part_of_the_output_and_of_the_sums(
    kernel: Any, queries: Any, tokens: Any
) -> None:
    q, k, v = prompt(4, 2, tokens, 16)
    needs = Needs(sums=True, squares=True, window=5)
    out, found = kernel.prefill(q[:, -queries:], k, v, scale=0.25, needs=needs)
    exact_out, exact = ReferenceAttention().prefill(
        q[:, -queries:].double(), k.double(), v.double(), scale=0.25, needs=needs
    )
    assert (out - exact_out).abs().max() < 0.02
    assert torch.allclose(found.sums_KT.double(), exact.sums_KT, rtol=0.01, atol=2e-3)
    assert torch.allclose(found.squares_KT.double(), exact.squares_KT, rtol=0.02, atol=2e-3)
    assert torch.allclose(found.window_KT.double(), exact.window_KT, rtol=0.01, atol=2e-3)


@needs_compiler
def test_prefill_reads_rows_as_a_model_hands_them_over(kernel: Any) -> None:
    q, k, v = prompt(4, 2, 200, 64)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)]
    assert not strided[0].is_contiguous()
    expected, sums = kernel.prefill(q, k, v, scale=0.125, needs=Needs(sums=True))
    got, same_sums = kernel.prefill(*strided, scale=0.125, needs=Needs(sums=True))
    assert torch.equal(got, expected)
    assert torch.equal(same_sums.sums_KT, sums.sums_KT)


@needs_compiler
def test_prefill_of_very_large_scores_stays_finite(kernel: Any) -> None:
    q, k, v = prompt(2, 2, 150, 64)
    out, found = kernel.prefill(q * 100, k * 100, v, scale=1.0, needs=Needs(sums=True))
    assert out.isfinite().all()
    assert torch.allclose(found.sums_KT.sum(1), torch.full((2,), 150.0), rtol=1e-4)


@needs_compiler
@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize(
    ("tokens", "rows", "window"), [(50, 50, 50), (70, 300, 32), (200, 200, 65)]
)
def test_a_window_is_counted_and_summed_on_the_way(
    kernel: Any, tokens: Any, rows: Any, window: Any, sums: Any
) -> None:
    q, _, _ = prompt(4, 2, tokens, 64)
    _, k, v = prompt(4, 2, rows, 64)
    needs = Needs(sums=sums, window=window, density=True)
    out, found = kernel.prefill(2 * q, k, v, scale=0.125, needs=needs)
    wide = [part.double() for part in (2 * q, k, v)]
    exact_out, exact = ReferenceAttention().prefill(*wide, scale=0.125, needs=needs)
    assert (out - exact_out).abs().max() < 0.03
    torch.testing.assert_close(found.window_KT.double(), exact.window_KT, rtol=1e-4, atol=1e-5)
    assert (found.sums_KT is not None) == sums
    if sums:
        torch.testing.assert_close(found.sums_KT.double(), exact.sums_KT, rtol=1e-4, atol=1e-5)
    is_image = torch.zeros(rows, dtype=torch.bool)
    measured = spread.measure(*wide[:2], scale=0.125, is_image_T=is_image, needs=needs)
    told = spread.counted(found.dense_K, rows, needs, group=2)
    assert torch.allclose(told.density_K.double(), measured.density_K, rtol=1e-3)
    assert 0.1 < float(measured.density_K.mean()) < 0.9


@needs_compiler
@pytest.mark.parametrize("size", [16, 64, 80, 128])
@pytest.mark.parametrize(("num_kept", "num_evicted"), [(1, 5), (40, 1), (256, 64), (300, 129)])
def test_nearest_equals_the_policys_own_search(
    kernel: Any, size: Any, num_kept: Any, num_evicted: Any
) -> None:
    generator = torch.Generator().manual_seed(size + num_kept)
    kept = torch.randn(3, num_kept, size, generator=generator).bfloat16()
    evicted = torch.randn(3, num_evicted, size, generator=generator).bfloat16()
    kept[:, -1] = kept[:, 0]  # equal keys: the first is taken
    evicted[1, 0] = 0  # no direction
    target, cosine = kernel.nearest(kept, evicted)
    exact = nearest_by_cosine(kept.double(), evicted.double())
    assert torch.allclose(cosine.double(), exact[1], atol=1e-5)
    same = target == exact[0]
    taken = torch.nn.functional.cosine_similarity(
        kept.double().gather(1, target[..., None].expand(-1, -1, size)), evicted.double(), dim=2
    )
    assert torch.allclose(taken[~same], exact[1][~same], atol=1e-6), "a tie, or nothing"
    assert same.float().mean() > 0.99


@needs_compiler
def test_float32_takes_the_reference(kernel: Any) -> None:
    q, k, v = (tensor.float() for tensor in prompt(4, 2, 50, 16))
    assert kernel.nearest(k, v) is None
    needs = Needs(sums=True)
    expected = ReferenceAttention().prefill(q, k, v, scale=0.2, needs=needs)
    got = kernel.prefill(q, k, v, scale=0.2, needs=needs)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1].sums_KT, expected[1].sums_KT)


def merging(num_kept: int, num_evicted: int, size: int) -> tuple[torch.Tensor, ...]:
    """Kept and evicted rows of three heads, who goes where, and the weights."""
    generator = torch.Generator().manual_seed(size)
    kept = torch.randn(3, num_kept, size, generator=generator).bfloat16()
    evicted = torch.randn(3, num_evicted, size, generator=generator).bfloat16()
    target = torch.randint(0, num_kept, (3, num_evicted), generator=generator)
    weight = torch.rand(3, num_evicted, generator=generator)
    centre = 1 + torch.rand(3, num_kept, generator=generator)
    return kept, evicted, target, weight, centre


@needs_compiler
@pytest.mark.parametrize(
    ("num_kept", "num_evicted", "size"), [(1, 5, 16), (40, 1, 7), (30, 200, 64)]
)
def test_combine_equals_the_policys_own(
    kernel: Any, num_kept: Any, num_evicted: Any, size: Any
) -> None:
    kept, evicted, target, weight, centre = merging(num_kept, num_evicted, size)
    (got,) = kernel.combine([(kept, evicted)], target, weight, centre)
    exact = combine(kept.double(), evicted.double(), target, weight.double(), centre.double())
    assert torch.allclose(got.double(), exact, rtol=2**-8, atol=1e-6)
    for head in range(3):
        untouched = sorted(set(range(num_kept)) - set(target[head].tolist()))
        assert torch.equal(got[head, untouched], kept[head, untouched])


@needs_compiler
@pytest.mark.parametrize(
    ("num_kept", "num_evicted", "size"), [(1, 5, 16), (40, 1, 7), (30, 200, 64)]
)
def test_lengthened_equals_the_policys_own(
    kernel: Any, num_kept: Any, num_evicted: Any, size: Any
) -> None:
    kept, evicted, target, weight, centre = merging(num_kept, num_evicted, size)
    generator = torch.Generator().manual_seed(size)
    weight *= torch.randint(0, 2, weight.shape, generator=generator)  # some receive nothing
    got = kernel.lengthened(kept, evicted, target, weight, centre)
    exact = lengthened(kept.double(), evicted.double(), target, weight.double(), centre.double())
    assert torch.allclose(got.double(), exact, rtol=2**-7, atol=2**-8)
    received = torch.zeros(3, num_kept).scatter_add_(1, target, weight) > 0
    assert torch.equal(got[~received], kept[~received])


@needs_compiler
@pytest.mark.parametrize("way", ["the library's", "by AVX-512 BF16", "by lanes"])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(
    ("rows", "inner", "columns"),
    [(64, 64, 128), (1, 2, 1), (7, 80, 80), (5, 64, 256), (63, 128, 96), (3, 6, 37), (13, 34, 100)],
)
def test_products_are_exact_products_summed_in_float32(
    rows: Any, inner: Any, columns: Any, add: Any, way: Any
) -> None:
    """Every way that this processor has; one that it lacks is the next one."""
    generator = torch.Generator().manual_seed(rows)
    a = torch.randn(rows, inner, generator=generator).bfloat16()
    b = torch.randn(inner, columns, generator=generator).bfloat16()
    c = torch.randn(rows, columns, generator=generator)
    number = ["the library's", "by AVX-512 BF16", "by lanes"].index(way)
    got = build.load_kernel().product(a, b, c, add, number)
    exact = a.double() @ b.double() + (c.double() if add else 0)
    assert (got - exact).abs().max() < 1e-5 * inner**0.5


@needs_compiler
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 9), st.sampled_from([1, 4, 16]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", ["auto", "int8"])
def test_write_puts_every_row_in_its_place_and_nothing_elsewhere(
    kernel: Any, stored: Any, dtype: Any, num_rows: Any, kv_heads: Any, size: Any, page_rows: Any
) -> None:
    assert choose("cpu", "cpu").write_rows is cpu_pages.write_rows
    layout = PageLayout(kv_heads, page_rows, size, dtype, stored)
    plain, fast = (
        PagePool(num_rows + 2, layout, write_rows=write)
        for write in (write_rows, cpu_pages.write_rows)
    )
    places = torch.randperm((num_rows + 2) * page_rows)[:num_rows]
    k = torch.randn(kv_heads, num_rows, 2 * size).to(dtype)[..., :size].transpose(0, 1)
    v = torch.randn(num_rows, kv_heads, size).to(dtype)
    v[0], v[:, 0, 0], v[-1] = 1e-38, 1e4, 0  # rows that are next to nothing, or nothing but one
    for pool in (plain, fast):
        pool.write(places // page_rows, places % page_rows, k, v)
    for expected, found in zip(plain.pages.parts, fast.pages.parts, strict=True):
        assert torch.equal(expected, found)


@needs_compiler
@pytest.mark.parametrize(("page", "slot"), [(3, 0), (-1, 0), (0, 4), (0, -1)])
def test_a_row_without_a_place_is_an_error_and_nothing_is_written(
    kernel: Any, page: Any, slot: Any
) -> None:
    layout = PageLayout(1, 4, 8, torch.bfloat16)
    pool = PagePool(2, layout, write_rows=cpu_pages.write_rows)
    rows = torch.ones(2, 1, 8, dtype=torch.bfloat16)
    with pytest.raises(IndexError, match="no such place"):
        pool.write(torch.tensor([0, page]), torch.tensor([0, slot]), rows, rows)
    assert not pool.pages.k_PKND.any()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("num_rows", "kv_heads", "size", "page_rows"), [(1, 1, 8, 4), (37, 3, 7, 16), (700, 2, 64, 16)]
)
def test_reading_gives_the_pages_rows_in_order_and_writes_nowhere_else(
    kernel: Any, dtype: Any, num_rows: Any, kv_heads: Any, size: Any, page_rows: Any
) -> None:
    assert choose("cpu", "cpu").read_rows is cpu_pages.read_rows
    num_pages = -(-num_rows // page_rows) + 2
    shape = (num_pages, kv_heads, page_rows, size)
    pages = Pages(*(torch.randn(shape).to(dtype) for _ in range(2)))
    page = torch.randperm(num_pages)[: num_pages - 2]
    fast, plain = (torch.zeros(2, kv_heads, num_rows + 3, size, dtype=dtype) for _ in range(2))
    for read, (k, v) in ((cpu_pages.read_rows, fast), (read_rows, plain)):
        read(pages, page, k[:, :num_rows], v[:, :num_rows])
    assert torch.equal(fast, plain)
    assert not fast[:, :, num_rows:].any()
    last = (num_rows - 1) // page_rows
    assert torch.equal(
        fast[0, :, num_rows - 1], pages.k_PKND[page[last], :, (num_rows - 1) % page_rows]
    )


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "size", "page_rows"), [(1, 8, 4), (37, 7, 16), (300, 64, 16)])
def test_reading_bytes_gives_the_bits_of_the_reference(
    kernel: Any, dtype: Any, num_rows: Any, size: Any, page_rows: Any
) -> None:
    _, pages, table, _ = case(4, 2, size, [num_rows], page_rows=page_rows, stored="int8")
    fast, plain = (torch.zeros(2, 2, num_rows + 3, size, dtype=dtype) for _ in range(2))
    for read, (k, v) in ((cpu_pages.read_rows, fast), (read_rows, plain)):
        read(pages, table[0].long(), k[:, :num_rows], v[:, :num_rows])
    assert torch.equal(fast, plain)
    assert fast[:, :, num_rows - 1].any()
    assert not fast[:, :, num_rows:].any()


@needs_compiler
def test_reading_a_page_that_is_not_there_is_an_error(kernel: Any) -> None:
    pages = PageLayout(1, 4, 8, torch.bfloat16).empty(2)
    rows = torch.empty(1, 4, 8, dtype=torch.bfloat16)
    with pytest.raises(IndexError, match="no such page"):
        cpu_pages.read_rows(pages, torch.tensor([2]), rows, rows)


@needs_compiler
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
@pytest.mark.parametrize(("num_rows", "num_queries"), [(700, 90), (300, 300), (900, 300), (129, 1)])
def test_statistics_of_parts_equal_those_of_each_alone(
    kernel: Any, kv_heads: int, num_rows: int, num_queries: int
) -> None:
    """Few queries go by KV head, many by blocks; parts end anywhere, some want nothing."""
    generator = torch.Generator().manual_seed(num_rows)
    q = torch.randn(8, num_queries, 64, generator=generator).bfloat16()
    k, v = (torch.randn(kv_heads, num_rows, 64, generator=generator).bfloat16() for _ in range(2))
    cuts = sorted({max(1, num_queries // 3), max(1, num_queries - 5), num_queries})
    wants = [Needs(sums=True), Needs(), Needs(sums=True, squares=True, window=40, density=True)]
    wants = wants[-len(cuts) :]
    out, found = kernel.prefill_parts(q, k, v, scale=0.125, ends=cuts, needs=wants)
    wide = (rows.double() for rows in (q, k, v))
    exact_out, exact = ReferenceAttention().prefill_parts(
        *wide, scale=0.125, ends=cuts, needs=wants
    )
    assert torch.allclose(out.double(), exact_out, atol=2e-2)
    for got, expected in zip(found, exact, strict=True):
        for name in ("sums_KT", "squares_KT", "window_KT"):
            ours, theirs = getattr(got, name), getattr(expected, name)
            assert (ours is None) == (theirs is None), name
            if ours is not None:
                assert torch.allclose(ours.double(), theirs, atol=1e-3, rtol=1e-2), name
    assert found[-1].dense_K is not None
