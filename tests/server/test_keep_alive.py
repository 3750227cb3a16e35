"""A stream that waits says so: headers when nothing can be refused, comments while it waits."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from server.settings import Settings
from tests.server.asgi_client import Visit
from tests.server.process import serving_process
from tests.server.raw_http import RawClient
from tests.server.requests import CHAT, chat, events, says_after, serving, until

COMMENT = b": keep-alive\n\n"
SOON = Settings(model="fake", stream_keep_alive_s=0.02)


def body_of(visit: Visit) -> bytes:
    return b"".join(message.get("body", b"") for message in visit.sent)


@pytest.mark.anyio
async def test_an_accepted_stream_has_headers_and_comments_before_its_first_token() -> None:
    release = asyncio.Event()
    async with serving(SOON, says_after(release), accepts=True) as (_, _, app):
        visit = Visit(app, chat(stream=True))
        await visit.first_byte.wait()
        assert visit.sent[0]["status"] == 200
        assert body_of(visit).startswith(COMMENT)
        release.set()
        await visit.task
    whole = body_of(visit).replace(COMMENT, b"").decode()
    assert [chunk["choices"][0]["delta"].get("content") for chunk in events(whole)][:4] == [
        "", "one", " two", " three",
    ]  # fmt: skip


@pytest.mark.anyio
async def test_a_stream_that_may_still_be_refused_has_no_headers() -> None:
    release = asyncio.Event()
    async with serving(SOON, says_after(release)) as (_, engine, app):
        visit = Visit(app, chat(stream=True))
        await until(lambda: engine.open == 1)
        await asyncio.sleep(0.1)
        assert visit.sent == []
        release.set()
        await visit.task
    assert COMMENT not in body_of(visit)


@pytest.mark.anyio
async def test_choices_are_waited_for_together() -> None:
    release = asyncio.Event()
    async with serving(SOON, says_after(release), accepts=True) as (_, engine, app):
        visit = Visit(app, chat(stream=True, n=3))
        await visit.first_byte.wait()
        assert engine.open == 3
        release.set()
        await visit.task
    assert body_of(visit).endswith(b"data: [DONE]\n\n")


@pytest.mark.anyio
@pytest.mark.parametrize("accepts", [False, True])
async def test_a_client_that_leaves_while_it_waits_ends_its_request(accepts: bool) -> None:
    async with serving(SOON, says_after(asyncio.Event()), accepts=accepts) as (_, engine, app):
        visit = Visit(app, chat(stream=True))
        await until(lambda: engine.open == 1)
        if accepts:
            await visit.first_byte.wait()
        await visit.leave()
        await until(lambda: engine.open == 0)


@pytest.mark.anyio
async def test_zero_turns_comments_off_and_headers_still_come() -> None:
    release = asyncio.Event()
    quiet = Settings(model="fake", stream_keep_alive_s=0)
    async with serving(quiet, says_after(release), accepts=True) as (_, _, app):
        visit = Visit(app, chat(stream=True))
        await until(lambda: bool(visit.sent))
        release.set()
        await visit.task
    assert COMMENT not in body_of(visit)


def test_a_stream_behind_a_long_answer_is_kept_alive_and_the_client_is_not_disturbed() -> None:
    flags = ("--model", "fake:step_s=0.01", "--threads", "1", "--max-running", "1")
    with serving_process(*flags, "--stream-keep-alive-s", "0.2") as server:
        long = RawClient(server.url)
        long.ask(chat(stream=True, max_tokens=300))
        long.read_until(b"word0")
        behind = RawClient(server.url)
        begun_s = time.monotonic()
        behind.ask(chat(stream=True))
        behind.read_until(b"\r\n\r\n")
        headers_s = time.monotonic() - begun_s
        with ThreadPoolExecutor(2) as clients:
            reading = clients.submit(behind.read_to_end_of_stream)
            text = clients.submit(_answer, server.client)
            long.read_to_end_of_stream()
            assert text.result(60) == "word0 word1 word2 word3"
            reading.result(60)
        assert headers_s < 2, "it waits three seconds for its first token"
        assert behind.received.count(COMMENT) >= 5
        assert behind.received.index(COMMENT) < behind.received.index(b"word0")
        assert b"data: [DONE]\n\n" in behind.received
        refused = httpx.post(server.url + CHAT, json=chat(stream=True, max_tokens=10**6))
        assert refused.status_code == 400


def _answer(client: openai.OpenAI) -> str:
    stream = client.chat.completions.create(**json.loads(json.dumps(chat())), stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)
