"""Keys and values as a byte a number: how they are rounded, what they take, who sees what."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lookm import CachePolicy
from lookm.attention import ReferenceAttention, masked
from lookm.cache import PagePool, SequenceCache
from lookm.device import choose_kv_cache_dtype
from lookm.errors import ConfigError
from lookm.kv_format import LARGEST, KvFormat, pack, unpack
from lookm.pages import PageLayout, Pages
from lookm.parking import Parking
from tests.lookm.test_parking import Chat, ask, engine_for
from tests.lookm.tiny import answers, random_prompt, tiny_engine, tiny_llava

CPU = torch.device("cpu")
#: The most that rounding moves a number: of the row's largest, or of the number itself.
STEPS = {torch.int8: (0.5 / 127, 0.0), torch.float8_e4m3fn: (2**-10 / 448, 2**-4)}


@given(st.integers(1, 9), st.integers(1, 80), st.floats(-20, 20), st.integers(0, 9))
@pytest.mark.parametrize("stored", LARGEST)
def test_no_number_moves_by_more_than_half_a_step(
    stored: Any, rows: Any, size: Any, exponent: Any, seed: Any
) -> None:
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    numbers, scale = pack(x, stored)
    assert numbers.dtype == stored
    assert scale.dtype == torch.float32
    top = x.abs().amax(1, keepdim=True)
    of_row, of_number = STEPS[stored]
    allowed = (of_row * top).maximum(of_number * x.abs()) * 1.0001
    assert ((unpack(numbers, scale, x.dtype) - x).abs() <= allowed).all()


def test_a_row_is_rounded_by_itself_to_nearest_and_zeros_stay() -> None:
    x = torch.tensor([[2.0, -1.0, 0.1], [0.0, 0.0, 0.0], [1e-38, 0, 0], [-127.0, 0.5, 1.5]])
    numbers, scale = pack(x, torch.int8)
    assert numbers.tolist() == [[127, -64, 6], [0, 0, 0], [0, 0, 0], [-127, 0, 2]]
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    assert unpack(numbers, scale, torch.float32)[3].tolist() == [-127.0, 0.0, 2.0]


@pytest.mark.parametrize("name", ["auto", "int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "page_tokens", "size"), [(2, 4, 7), (8, 16, 128)])
def test_a_pages_bytes_are_those_of_its_tensors(
    heads: Any, page_tokens: Any, size: Any, dtype: Any, name: Any
) -> None:
    layout = PageLayout(heads, page_tokens, size, dtype, name)
    pages = layout.empty(5)
    assert sum(part.nbytes for part in pages.parts) == 5 * layout.page_bytes
    wide = PageLayout(heads, page_tokens, size, dtype)
    assert layout.raw == wide
    if name != "auto":
        assert layout.page_bytes == 2 * heads * page_tokens * (size + 4)


@pytest.mark.parametrize("stored", ["auto", "int8", "fp8"])
def test_rows_come_back_as_their_format_rounds_them_and_copies_are_the_same_bits(
    stored: Any,
) -> None:
    layout = PageLayout(2, 4, 16, torch.bfloat16, stored)
    pool = PagePool(20, layout)
    first, second = SequenceCache(pool, 2), SequenceCache(pool, 2)
    k, v = torch.randn(2, 2, 11, 16).bfloat16()
    for layer, rows in enumerate((11, 6)):
        first.reserve(first.kept_L + (rows if layer else [rows, 0]))
        first.append(layer, k[:, :rows], v[:, :rows])
    expected = k
    if first.rounds:
        expected = unpack(*pack(k, layout.format.stored), torch.bfloat16)
    assert first.rounds == (stored != "auto")
    assert torch.equal(first.gather(0)[0], expected)
    second.copy(first, first.kept_L - 1)
    assert second.kept_L.tolist() == [10, 5]
    for layer, rows in enumerate((10, 5)):
        for mine, other in zip(second.gather(layer), first.gather(layer), strict=True):
            assert torch.equal(mine, other[:, :rows])
    pool.check([*first.pages, *second.pages])


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_a_window_and_the_reference_read_the_numbers_that_bytes_stand_for(name: Any) -> None:
    torch.manual_seed(0)
    pages = PageLayout(2, 4, 8, torch.float32, name).empty(9)
    k, v = torch.randn(2, 9, 2, 4, 8)
    stored = pages.k_PKND.dtype
    pages = Pages(*(pack(part, stored)[0] for part in (k, v)),
                  *(pack(part, stored)[1] for part in (k, v)))  # fmt: skip
    wide = Pages(*pages.taken(slice(None), torch.float32))
    q, table = torch.randn(2, 4, 8), torch.randperm(9)[:8].view(2, 4).int()
    rest = (table, torch.tensor([14, 3]))
    for read in (
        lambda each: masked.decode(q, each, *rest, scale=0.3, window=6),
        lambda each: ReferenceAttention().decode(q, each, *rest, scale=0.3),
    ):
        assert torch.equal(read(pages), read(wide))


def test_fp8_is_refused_where_there_is_none_and_the_way_out_is_named() -> None:
    with pytest.raises(ConfigError, match=r"device is cpu.*'int8'"):
        choose_kv_cache_dtype("fp8", CPU)
    with pytest.raises(ConfigError, match="device is cpu"):
        tiny_engine(kv_cache_dtype="fp8")
    wrong: Any = "int4"
    with pytest.raises(ConfigError, match="use auto, int8 or fp8"):
        choose_kv_cache_dtype(wrong, CPU)
    assert choose_kv_cache_dtype("int8", CPU) == "int8"


@pytest.mark.parametrize(("capability", "works"), [((8, 6), False), ((8, 9), True)])
def test_fp8_begins_with_ada(capability: Any, works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    if works:
        assert choose_kv_cache_dtype("fp8", torch.device("cuda")) == "fp8"
    else:
        with pytest.raises(ConfigError, match="A GPU is older than Ada"):
            choose_kv_cache_dtype("fp8", torch.device("cuda"))


def test_auto_is_the_models_own_type() -> None:
    assert KvFormat.of("auto", torch.bfloat16) == KvFormat(torch.bfloat16, torch.bfloat16)
    assert not KvFormat.of("auto", torch.bfloat16).scaled


@pytest.mark.parametrize("attention", ["reference", "cpu"])
def test_an_int8_pool_holds_nearly_four_times_the_float32_rows_and_says_so(attention: Any) -> None:
    prompt, reports, capacities = random_prompt(4, seed=1), {}, {}
    for stored in ("auto", "int8"):
        engine = tiny_engine(kv_cache_dtype=stored, attention=attention)
        held = sum(part[:-1].nbytes for part in engine._pool.pages.parts)
        assert held == engine.stats().capacity_bytes == engine.plan.capacity_bytes
        assert engine.info.kv_cache_dtype == stored
        engine.add(prompt.request("a", CachePolicy("look-m", keep=0.3)))
        events = []
        while engine.has_work:
            events += engine.step()
            if engine.stats().running:
                cache = next(iter(engine._sequences.values())).cache
                assert engine.stats().used_bytes == cache.num_pages * engine.plan.page_bytes
        reports[stored] = next(event.cache for event in events if event.cache)
        capacities[stored] = engine.plan.num_pages
        assert engine.stats().used_bytes == 0
    assert reports["auto"].kept_tokens == reports["int8"].kept_tokens
    assert reports["int8"].bytes * 64 == reports["auto"].bytes * 20  # 16 + 4 bytes of 64
    assert reports["int8"].full_bytes * 64 == reports["auto"].full_bytes * 20
    assert capacities["int8"] == capacities["auto"] * 64 // 20


@pytest.mark.parametrize("policy", [CachePolicy(), CachePolicy("look-m-plus", keep=0.3)])
def test_recorded_steps_and_kernels_answer_alike(policy: CachePolicy) -> None:
    requests = [random_prompt(n, seed=n).request(str(n), policy) for n in (0, 2, 5)]
    found = [
        answers(tiny_engine(kv_cache_dtype="int8", **how), requests, every=2)
        for how in ({}, {"graphs": "on"}, {"attention": "cpu"}, {"max_step_tokens": 16})
    ]
    assert found[1:] == found[:1] * 3


def test_at_full_a_parked_conversation_is_gone_on_from_as_a_fresh_one() -> None:
    engine, chat = engine_for(kv_cache_dtype="int8"), Chat(4)
    for turn in range(3):
        found = ask(engine, chat.request(str(turn)))
        fresh = ask(engine, chat.request(f"fresh {turn}", reuse="none"))
        assert (found.cached > 0) == (turn > 0)
        assert found.tokens == fresh.tokens
        for mine, other in zip(found.rows, fresh.rows, strict=True):
            assert all((a - b).abs().max() < 1e-4 for a, b in zip(mine, other, strict=True))
        chat.go_on(found.tokens, num_images=turn % 2)
    assert engine.stats().used_bytes == 0


def test_rows_that_earlier_turns_kept_are_copied_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Answers from copies are those from the rows themselves."""
    policy, found = CachePolicy("look-m", keep=0.3), []
    for copies in (True, False):
        if not copies:
            monkeypatch.setattr(Parking, "_copied", lambda self, sequence, offer: False)
        engine, chat = engine_for(kv_cache_dtype="int8"), Chat(4)
        turns = []
        for turn in range(3):
            turns.append(ask(engine, chat.request(str(turn), policy, reuse="kept")))
            assert (turns[-1].cached > 0) == (turn > 0)
            chat.go_on(turns[-1].tokens, num_images=turn % 2)
        found.append([(turn.tokens, turn.kept) for turn in turns])
        assert engine.stats().parked_conversations == (3 if copies else 1)
        assert engine.stats().used_bytes == 0
    assert found[0] == found[1]


def test_the_prompt_store_keeps_raw_rows_so_that_policies_see_what_they_would() -> None:
    """A prompt that begins alike, from the store, is answered as if it were computed whole."""
    first = random_prompt(6, seed=3, text_tokens=40)
    for policy in (CachePolicy(), CachePolicy("look-m-plus", keep=0.3)):
        engine = tiny_engine(tiny_llava(), kv_cache_dtype="int8", parking=False,
                             prompt_store_bytes=2**24)  # fmt: skip
        alone = tiny_engine(tiny_llava(), kv_cache_dtype="int8", parking=False,
                            prompt_store_bytes=0)  # fmt: skip
        assert answers(engine, [first.request("a", policy)]) == answers(
            alone, [first.request("a", policy)]
        )
        second = answers(engine, [first.request("b", policy)])
        assert second == answers(alone, [first.request("b", policy)])
        assert engine.stats().prompt_store_hit_tokens_total > 0


@pytest.mark.parametrize("stored", ["auto", "int8"])
def test_rows_that_pages_round_never_come_to_the_prompt_store(stored: Any) -> None:
    """Rows of a parked conversation are stored only where they are those of the model."""
    engine, chat = engine_for(kv_cache_dtype=stored, prompt_store_bytes=2**24), Chat(6)
    first = ask(engine, chat.request("first"))
    held = engine.stats().prompt_store_bytes
    chat.go_on(first.tokens, num_images=2)
    assert ask(engine, chat.request("second")).cached > 0
    assert (engine.stats().prompt_store_bytes > held > 0) == (stored == "auto")
    found = ask(engine, chat.request("compressed", CachePolicy("snapkv", keep=0.3)))
    fresh = engine_for(kv_cache_dtype=stored)
    assert found.cached > 0
    assert found.tokens == ask(fresh, chat.request("f", CachePolicy("snapkv", keep=0.3))).tokens
