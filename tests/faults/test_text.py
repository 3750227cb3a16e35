"""Attacks with text, JSON and grammars, and readers that do not read, while others measure."""

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.faults.watch import ask, watched
from tests.server.process import ServerProcess, serving_process
from tests.server.raw_http import RawClient
from tests.server.requests import CHAT, chat, image

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

MODEL = "llava-demo"
LONG = {"model": MODEL, "max_tokens": 1900, "ignore_eos": True}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving_process("--model", MODEL, "--receive-timeout-s", "10") as server:
        for _ in range(3):
            assert ask(server, chat(image(), model=MODEL)).status_code == 200
        yield server


def asks(*parts: Any, **fields: Any) -> dict[str, Any]:
    return chat(*parts, model=MODEL, **{"max_tokens": 4} | fields)


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}


def product(letter: str, count: int = 30) -> dict[str, Any]:
    """Case row 1: automata whose product is exponential."""
    return {"allOf": [{"type": "string", "pattern": f"{letter}{n}"} for n in range(count)]}


def test_a_grammar_of_exponential_size(server: ServerProcess) -> None:
    with watched(server, "a JSON schema of 30 patterns in one string") as figures:
        for _ in range(3):
            answer = ask(server, asks(response_format=schema(product("w"))))
            assert figures.answered(answer) == 400


def test_ten_such_grammars_at_once(server: ServerProcess) -> None:
    bodies = [asks(response_format=schema(product(letter))) for letter in "abcdefghij"]
    with (
        watched(server, "ten such schemas at once") as figures,
        ThreadPoolExecutor(10) as pool,
    ):
        for answer in pool.map(lambda body: ask(server, body), bodies):
            assert figures.answered(answer) in (400, 429)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize"])
def test_text_of_100_megabytes(server: ServerProcess, path: str) -> None:
    words = "a b " * 25_000_000
    if path == "/v1/completions":
        body: dict[str, Any] = {"model": MODEL, "prompt": words}
    else:
        body = {"model": MODEL, "messages": [{"role": "user", "content": words}]}
    content = json.dumps(body).encode()
    with watched(server, f"100 MB of text to `{path}`") as figures:
        assert figures.answered(post(server, path, content)) == 400


def test_tools_of_100_megabytes(server: ServerProcess) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "a b " * 25_000_000}}
    content = json.dumps(asks(tools=[tool])).encode()
    with watched(server, "a tool described in 100 MB") as figures:
        assert figures.answered(post(server, CHAT, content)) == 400


def test_three_million_keys(server: ServerProcess) -> None:
    content = json.dumps(asks(metadata={f"k{n:09}": "" for n in range(3 * 10**6)})).encode()
    with watched(server, "three million metadata keys, 57 MB") as figures:
        assert figures.answered(post(server, CHAT, content)) == 400


def test_a_hundred_thousand_parts(server: ServerProcess) -> None:
    url = {"url": "data:image/png;base64,AAAA"}
    part = {"type": "image_url", "image_url": url}
    content = json.dumps(asks(*[part] * 10**5)).encode()
    with watched(server, "10^5 image parts") as figures:
        assert figures.answered(post(server, CHAT, content)) == 400


def test_a_body_in_chunks_of_a_byte(server: ServerProcess) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = b"1\r\n \r\n" * 2**16
    with watched(server, "12 MB in chunks of a byte") as figures:
        client = RawClient(server.url)
        client.send(head)
        with contextlib.suppress(OSError):  # it is hung up on
            for _ in range(12 * 2**20 // 2**16):
                client.send(chunks)
        with contextlib.suppress(OSError):
            client.read_to_end()
        figures.check(client, stream=False)


def test_sixteen_readers_that_do_not_read(server: ServerProcess) -> None:
    with watched(server, "16 streams of 16 choices that nobody reads") as figures:
        unread = [RawClient(server.url, receive_buffer=4096) for _ in range(16)]
        for client in unread:
            client.ask(chat("Tell me.", stream=True, n=16, **LONG))
        time.sleep(30)
        for client in unread:
            client.socket.close()
    assert figures.worst_chat_s is not None


def test_tokenizing_two_megabytes(server: ServerProcess) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a b " * 500_000}]}
    with watched(server, "`/tokenize` of 2 MB, ten times") as figures:
        for _ in range(10):
            figures.answered(ask(server, body, "/tokenize"))


def test_tokenizing_what_fits(server: ServerProcess) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a b " * 900}]}
    with (
        watched(server, "`/tokenize` of a context, 200 times by ten") as figures,
        ThreadPoolExecutor(10) as pool,
    ):
        for answer in pool.map(lambda _: ask(server, body, "/tokenize"), range(200)):
            figures.answered(answer)


def test_a_whole_answer_with_all_its_logprobs(server: ServerProcess) -> None:
    fields = {**LONG, "n": 16, "logprobs": True, "top_logprobs": 20, "temperature": 1.0}
    with watched(server, "16 x 1,900 tokens with 20 logprobs each") as figures:
        answer = ask(server, chat("Tell me.", **fields))
        assert figures.answered(answer) == 200
        assert len(answer.json()["choices"]) == 16


def post(server: ServerProcess, path: str, content: bytes) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(server.url + path, content=content, headers=headers, timeout=300)
