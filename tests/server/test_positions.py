"""`kv_cache.positions`: who asks is told which tokens of the prompt were kept, and nobody else."""

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lookm import positions
from server.fake.processor import IMAGE_TOKENS
from server.openai.response import kept_positions
from server.settings import Settings
from tests.server.requests import CHAT, chat, data_url, events, image, png, says, serving

pytestmark = pytest.mark.anyio

ASKED = {"method": "look-m", "keep": 0.2, "positions": True}


async def answer(client: httpx.AsyncClient, **fields: Any) -> Any:
    """The usage of an answer about two pictures, streamed or not."""
    pictures = image(data_url(png("red", (64, 32)))), image(data_url(png("blue", (10, 20))))
    response = await client.post(CHAT, json=chat(pictures[0], "one", pictures[1], "two", **fields))
    assert response.status_code == 200, response.text
    if "stream" in fields:
        return events(response.text)[-1]["usage"]["kv_cache"]
    return response.json()["usage"]["kv_cache"]


STREAM = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("more", [{}, STREAM, {"n": 3}, {**STREAM, "n": 3}], ids=str)
async def test_who_asks_is_told_streamed_or_not(client: httpx.AsyncClient, more: Any) -> None:
    usage = await answer(client, kv_cache=ASKED, **more)
    found = positions.decode(usage["positions"])
    assert found.num_tokens == usage["prompt_tokens"] == 2 * IMAGE_TOKENS + 2
    assert (found.kept_LKT.sum(-1) == usage["kept_tokens"]).all()
    assert (found.merged_LKT.sum(-1) == usage["merged_tokens"]).all()
    first, second = found.images
    assert (first.width, first.height, first.first_token) == (64, 32, 0)
    assert (second.width, second.height, second.first_token) == (10, 20, IMAGE_TOKENS + 1)
    assert second.grids[0].box == (0, 0, 10, 20)
    assert [run.first_token for run in found.text] == [IMAGE_TOKENS, 2 * IMAGE_TOKENS + 1]


@pytest.mark.parametrize(
    ("kv_cache", "model"),
    [(None, "fake"), ("look-m@0.2", "fake"), ({**ASKED, "positions": False}, "fake")],
)
async def test_who_does_not_ask_is_not_told(
    client: httpx.AsyncClient, kv_cache: Any, model: str
) -> None:
    assert "positions" not in await answer(client, kv_cache=kv_cache, model=model)


async def test_it_may_be_asked_alone_where_the_policy_is_named_elsewhere(
    client: httpx.AsyncClient,
) -> None:
    usage = await answer(client, model="fake:h2o@0.5", kv_cache={"positions": True})
    assert usage["method"] == "h2o"
    assert usage["positions"]["merged"] is not None
    usage = await answer(client, kv_cache={"positions": True, "reuse": "none"})
    assert usage["method"] == "full"
    assert positions.decode(usage).kept_LKT.all()


async def test_a_completion_is_told_too(client: httpx.AsyncClient) -> None:
    body = {"model": "fake", "prompt": "a b c d e", "max_tokens": 2, "kv_cache": ASKED}
    usage = (await client.post("/v1/completions", json=body)).json()["usage"]
    found = positions.decode({"usage": usage})
    assert found.images == ()
    assert len(found.text[0].tokens) == 5


async def test_a_server_may_keep_it_to_itself() -> None:
    async with serving(Settings(model="fake", positions=False), says) as (client, *_):
        refused = await client.post(CHAT, json=chat("hi", kv_cache=ASKED))
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("unsupported_parameter", "kv_cache.positions")
        assert "--no-positions" in error["message"]
        plain = await client.post(CHAT, json=chat("hi", kv_cache={**ASKED, "positions": False}))
        assert plain.status_code == 200


@pytest.mark.parametrize("wrong", [1, "yes", [], {}])
async def test_it_is_true_or_false(client: httpx.AsyncClient, wrong: Any) -> None:
    response = await client.post(CHAT, json=chat("hi", kv_cache={**ASKED, "positions": wrong}))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "kv_cache.positions"


async def test_it_is_written_off_the_event_loop_and_only_for_who_asks(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    written = kept_positions.positions.encode

    def spied(found: Any) -> Any:
        threads.append(threading.get_ident())
        return written(found)

    monkeypatch.setattr(kept_positions.positions, "encode", spied)
    await answer(client, kv_cache={**ASKED, "positions": False})
    assert threads == []
    await asyncio.gather(*(answer(client, kv_cache=ASKED, n=2) for _ in range(3)))
    assert len(threads) == 3, "once a request"
    assert threading.get_ident() not in threads


async def test_the_documents_ten_lines_decode_it(client: httpx.AsyncClient) -> None:
    """The decoder of docs/positions.md, as it stands there."""
    page = (Path(__file__).parents[2] / "docs" / "positions.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import base64.*?)```", page, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    usage = await answer(client, kv_cache=ASKED)
    kept = namespace["bits"](usage["positions"], "kept")
    assert np.array_equal(np.array(kept), positions.decode(usage).kept_LKT)
