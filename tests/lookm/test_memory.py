"""The plan of memory: what a pool holds, and the line that says so."""

import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lookm import memory
from lookm.attention import REFERENCE
from lookm.config import EngineConfig
from lookm.errors import ConfigError
from lookm.memory import _Looking
from lookm.models.adapter import Adapter
from lookm.models.families import family_of
from lookm.models.inputs import PackedRows
from lookm.models.vision import MAX_IMAGES_TOGETHER
from lookm.sizing import GPU_SPARE, CacheShape
from tests.lookm.tiny import random_prompt, tiny_engine, tiny_llava


def test_the_room_behind_a_prompt_is_counted_in_whole_pages_of_each_layer() -> None:
    shape = CacheShape(16, 10, (None, None))
    rows_L = np.array([2040, 408])
    capacity_bytes = 10 * (2048 // 16 * 2)  # one conversation of 2,048 tokens at full cache
    assert shape.room(np.array([2040, 2040]), capacity_bytes, 8) == 8
    assert shape.room(np.array([2040, 2040]), capacity_bytes, 3) == 3
    assert shape.room(np.array([2048, 2048]), capacity_bytes, 100) == 0
    assert shape.room(rows_L, capacity_bytes, 5000) == 824  # 180 pages and 76 more
    assert shape.bytes(rows_L + 824) <= capacity_bytes < shape.bytes(rows_L + 825)


def test_a_fifth_of_the_cache_is_five_times_the_conversations() -> None:
    pages = 32 * 256 * 100  # 100 conversations of 4,096 tokens in 32 layers
    shape = CacheShape(16, 1, (None,) * 32)
    assert shape.conversations(pages, shape.rows(4096, 4096)) == 100
    assert shape.conversations(pages, shape.rows(4096, 4096 // 5)) >= 4.7 * 100


def test_the_plan_says_in_one_line_how_many_conversations_fit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="lookm.memory"):
        tiny_engine(kv_cache_bytes=16 * 2**20)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "lookm.memory"]
    pages = 16 * 2**20 // (2 * 2 * 16 * 16 * 4)
    assert "conversations of 512 tokens" in line, "as long as the context, at most 4,096"
    assert f"{pages // (32 * 3)} at full, 64 at look-m@0.2" in line, "no more than may run"
    assert f"--max-running 64; pages for {pages // (32 * 3)} and {pages // (7 * 3)}" in line


def test_a_pool_larger_than_the_machine_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match=r"to be 1048576\.00 GiB, but this machine"):
        tiny_engine(kv_cache_bytes=2**50)


@pytest.mark.parametrize("tokens", [1, 33])
def test_the_prefill_that_is_measured_is_a_real_one(tokens: Any) -> None:
    """Its hidden states are those of the model with a causal mask of its own."""
    model = tiny_llava()
    ours = Adapter(model, family_of(model.config))
    pos_RT = torch.arange(tokens)[None]
    rows = PackedRows(ours.embed_tokens([0] * tokens), pos_RT)
    found = ours.forward(rows, _Looking(REFERENCE, tokens, 3, torch.device("cpu")))
    expected = tiny_llava().model(input_ids=torch.zeros(1, tokens, dtype=torch.long))
    torch.testing.assert_close(found, expected.last_hidden_state[0], rtol=1e-4, atol=1e-4)


def test_on_a_gpu_the_pool_is_what_a_prefill_leaves_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def prefill_bytes(adapter: Any, attention: Any, num_tokens: Any) -> Any:
        asked.append(num_tokens)
        return 3 * 2**30

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 * 2**30, 140 * 2**30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(memory, "prefill_bytes", prefill_bytes)
    monkeypatch.setattr(memory, "encode_bytes", lambda adapter, image: image * 2**30)
    adapter = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float16)
    config = EngineConfig(max_step_tokens=2048, image_cache_bytes=2**30)
    page_bytes = 2**18  # of 16 tokens: four layers of 8,192 are half a GiB
    for image, needed in ((None, 3.5), (2, 3.5), (5, 5)):  # it is encoded before the prefill
        found = memory._free_bytes(config, adapter, REFERENCE, 8192, page_bytes, image)
        assert found == pytest.approx(((1 - GPU_SPARE) * 100 - 1 - needed) * 2**30)
    config = replace(config, prompt_store_bytes=0)
    found = memory._free_bytes(config, adapter, REFERENCE, 8192, page_bytes, None)
    assert found == pytest.approx(((1 - GPU_SPARE) * 100 - 1 - 3) * 2**30)
    assert asked == [8192] * 4, "a prompt that is looked at runs whole"


def test_encoding_is_measured_on_as_many_images_as_go_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 + 7 * len(seen))
    vision = SimpleNamespace(encode_images=seen.extend)
    adapter = SimpleNamespace(device="cuda", vision=vision)
    (image,) = random_prompt(1, seed=0).request("a").images
    assert memory.encode_bytes(adapter, image) == 7 * MAX_IMAGES_TOGETHER
    assert len({each.digest for each in seen}) == MAX_IMAGES_TOGETHER
