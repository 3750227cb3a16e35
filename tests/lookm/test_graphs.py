"""Decode steps on static buffers: the same tokens, no question to the host, no stray write."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lookm import CachePolicy
from lookm.attention import REFERENCE, ReferenceAttention
from lookm.cache import PagePool
from lookm.errors import ConfigError
from lookm.graphs import DecodeGraphs, batch_sizes, make_graphs
from lookm.models.adapter import Adapter
from lookm.models.families import family_of
from lookm.pages import PageLayout
from tests.lookm.host_syncs import questions
from tests.lookm.models.toys import TOYS
from tests.lookm.tiny import answers, generate, random_prompt, tiny_engine, tiny_llava

LOOK = CachePolicy("look-m", keep=0.2)
POLICIES = [CachePolicy(), LOOK, CachePolicy("h2o", keep=0.3)]


def requests(count: Any, **sampling: Any) -> Any:
    return [
        random_prompt(n % 4, seed=n).request(str(n), POLICIES[n % 3], **sampling)
        for n in range(count)
    ]


@pytest.mark.parametrize("every", [0, 1, 3])
def test_the_static_path_gives_the_tokens_of_the_normal_one(every: Any) -> None:
    found = {
        graphs: answers(tiny_engine(graphs=graphs, max_running=7), requests(9), every=every)
        for graphs in ("on", "off")
    }
    assert found["on"] == found["off"]


def test_answers_of_different_lengths_leave_rows_that_others_take() -> None:
    asked = [
        random_prompt(2, seed=n).request(str(n), POLICIES[n % 3], max_tokens=3 + 7 * (n % 4))
        for n in range(12)
    ]
    on, off = (
        answers(tiny_engine(graphs=graphs, max_running=5, page_tokens=4), asked, every=1)
        for graphs in ("on", "off")
    )
    assert on == off


def test_full_cache_still_equals_generate() -> None:
    prompt = random_prompt(3, seed=1)
    got = answers(tiny_engine(graphs="on"), [prompt.request("a")])["a"]
    assert got == generate(tiny_llava(), prompt, 12)


def test_seeded_draws_penalties_and_logprobs_are_the_same() -> None:
    asked = requests(4, temperature=0.8, top_p=0.9, seed=7, frequency_penalty=0.5, logprobs=2)
    on, off = (answers(tiny_engine(graphs=graphs), asked) for graphs in ("on", "off"))
    assert on == off


def test_preempted_sequences_come_back_with_other_pages_and_the_same_answers() -> None:
    pages = 3 * 6 * 4
    tight = {"kv_cache_bytes": pages * 2 * 2 * 16 * 16 * 4, "page_tokens": 16}
    asked = [random_prompt(3, seed=n).request(str(n), max_tokens=40) for n in range(6)]
    engine = tiny_engine(graphs="on", **tight)
    assert answers(engine, asked) == answers(tiny_engine(graphs="off", **tight), asked)
    assert engine.stats().preemptions_total > 0


def test_rows_without_a_sequence_write_to_nobodys_page() -> None:
    engine = tiny_engine(graphs="on", max_running=4)
    for n, tokens in enumerate((12, 3, 12)):
        engine.add(random_prompt(1, seed=n).request(str(n), max_tokens=tokens))
    for _ in range(5):
        engine.step()
    assert engine.stats().running == 2, "one has left its row"
    pool = engine._pool
    pool.pages.k_PKND[pool._free] = 77.0
    engine.step()
    assert (pool.pages.k_PKND[pool._free] == 77.0).all()


class Blind(ReferenceAttention):
    """Attention that reads no lengths, as a kernel does not; its output is no attention."""

    def decode(self, q_BHD: Any, pages: Any, table_BM: Any, lengths_B: Any, *, scale: Any) -> Any:
        return q_BHD * scale + pages.k_PKND[table_BM[:, 0].long(), 0, 0][:, None]


def recorded(model: Any, attention: Any) -> Any:
    backend = dataclasses.replace(REFERENCE, attention=attention)
    adapter = Adapter(model, family_of(model.config))
    dims = adapter.dimensions
    pool = PagePool(9, PageLayout(dims.num_kv_heads, 16, dims.head_dim, torch.float32))
    graphs = DecodeGraphs(adapter, pool, backend, [1, 2], width=4, replay=False)
    graphs.record()
    return graphs


@pytest.mark.parametrize("name", sorted(set(TOYS) - {"gemma3"}))  # which has windows
def test_the_recorded_step_never_asks_the_host(name: Any) -> None:
    graphs = recorded(TOYS[name].model(), Blind())
    assert questions(graphs._replays[2]) == []


def test_the_detector_sees_the_reference_reading_lengths() -> None:
    graphs = recorded(tiny_llava(), ReferenceAttention())
    assert questions(graphs._replays[2])


def test_on_is_refused_with_the_reason_where_layers_have_windows() -> None:
    adapter = SimpleNamespace(dimensions=SimpleNamespace(windows_L=(None, 8)))
    pool = SimpleNamespace(device=torch.device("cpu"))
    on, auto = (SimpleNamespace(graphs=asked) for asked in ("on", "auto"))
    with pytest.raises(ConfigError, match="sliding window"):
        make_graphs(on, None, adapter, pool, REFERENCE)
    assert make_graphs(auto, None, adapter, pool, REFERENCE) is None


@pytest.mark.parametrize("most", [1, 3, 8, 50, 64, 100, 256])
def test_every_batch_has_a_size_with_little_padding(most: Any) -> None:
    sizes = batch_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    for count in range(1, most + 1):
        size = next(size for size in sizes if size >= count)
        assert size - count < max(2, 8 if size <= 64 else 32)
