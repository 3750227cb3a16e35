"""The C++ decode kernel against its torch twin, and what happens where it cannot be built."""

import itertools

import pytest
import torch

from lookm.attention import ReferenceAttention, choose
from lookm.attention.kernels import build
from lookm.errors import ConfigError
from tests.lookm.tiny import answers, generate, random_prompt, tiny_engine, tiny_llava

needs_compiler = pytest.mark.skipif(
    bool(build.missing_tools()), reason=f"missing: {build.missing_tools()}"
)


@pytest.fixture(scope="module")
def kernel():
    return choose("cpu", "cpu")


def case(heads, kv_heads, size, lengths, dtype=torch.float32, page_rows=16):
    """Queries, pages filled with noise everywhere, a shuffled table, lengths."""
    generator = torch.Generator().manual_seed(heads * 1000 + size)
    width = max(1, -(-max(lengths) // page_rows))
    pages = len(lengths) * width + 3
    shape = (pages, kv_heads, page_rows, size)
    q = torch.randn(len(lengths), heads, size, generator=generator).to(dtype)
    k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    table = torch.randperm(pages, generator=generator)[: len(lengths) * width]
    table = table.view(len(lengths), width).to(torch.int32)
    return q, k, v, table, torch.tensor(lengths)


SHAPES = [(4, 4, 64), (4, 2, 16), (6, 1, 80), (8, 8, 128), (2, 1, 256), (3, 3, 7)]
LENGTHS = [[1], [16, 17], [0, 5, 33], [100, 1, 64, 31]]


@needs_compiler
@pytest.mark.parametrize(("shape", "lengths"), list(itertools.product(SHAPES, LENGTHS)))
def test_decode_equals_the_reference(kernel, shape, lengths):
    args = case(*shape, lengths)
    expected = ReferenceAttention().decode(*args, scale=0.2)
    assert torch.allclose(kernel.decode(*args, scale=0.2), expected, atol=2e-6)


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_decode_in_bfloat16_is_as_close_to_float64_as_the_reference(kernel, shape):
    args = case(*shape, [40, 3, 90], torch.bfloat16)
    wide = [t.double() if t.is_floating_point() else t for t in args]
    exact = ReferenceAttention().decode(*wide, scale=0.2)
    assert (kernel.decode(*args, scale=0.2) - exact).abs().max() < 0.02


@needs_compiler
def test_the_comparison_sees_a_wrong_page(kernel):
    q, k, v, table, lengths = case(4, 2, 16, [40])
    other = kernel.decode(q, k, v, table.flip(1), lengths, scale=0.2)
    assert not torch.allclose(other, kernel.decode(q, k, v, table, lengths, scale=0.2), atol=1e-3)


@needs_compiler
def test_very_large_scores_do_not_overflow(kernel):
    q, k, v, table, lengths = case(4, 2, 16, [40])
    args = (q * 100, k * 100, v, table, lengths)
    expected = ReferenceAttention().decode(*args, scale=1.0)
    assert torch.allclose(kernel.decode(*args, scale=1.0), expected, atol=1e-5)


@needs_compiler
def test_the_launcher_refuses_what_the_kernel_cannot_read(kernel):
    q, k, v, table, lengths = case(4, 2, 16, [40])
    for wrong in (
        (q.double(), k.double(), v.double(), table, lengths),
        (q, k.transpose(1, 2), v.transpose(1, 2), table, lengths),
        (q, k, v, table.long(), lengths),
        (q, k, v, table, lengths.int()),
        (q[:, :3], k, v, table, lengths),
        (q, k, v, table[:0], lengths),
    ):
        with pytest.raises(AssertionError):
            kernel.decode(*wrong, scale=1.0)


@needs_compiler
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_an_engine_on_the_kernel_equals_generate(kv_heads):
    prompts = [random_prompt(n, seed=n) for n in (0, 2, 5)]
    engine = tiny_engine(tiny_llava(kv_heads=kv_heads), attention="cpu")
    got = answers(engine, [p.request(str(i)) for i, p in enumerate(prompts)], every=2)
    for i, prompt in enumerate(prompts):
        assert got[str(i)] == generate(tiny_llava(kv_heads=kv_heads), prompt, 12)


def test_without_a_compiler_auto_is_the_reference_and_says_why(monkeypatch, caplog):
    monkeypatch.setattr(build, "missing_tools", lambda: ["ninja"])
    assert choose("auto", "cpu").name == "reference"
    assert "ninja is missing" in caplog.text
    with pytest.raises(ConfigError, match="ninja is missing"):
        choose("cpu", "cpu")


def test_a_kernel_that_does_not_compile_is_reported_in_one_line(monkeypatch, caplog):
    def fail():
        raise RuntimeError("Error building extension\nmany\nlines")

    monkeypatch.setattr(build, "missing_tools", list)
    monkeypatch.setattr(build, "load_kernel", fail)
    assert choose("auto", "cpu").name == "reference"
    assert "cannot be built: Error building extension" in caplog.text
    assert "many" not in caplog.text


def test_float16_has_no_kernel():
    with pytest.raises(ConfigError, match="float16"):
        choose("cpu", "cpu", torch.float16)
