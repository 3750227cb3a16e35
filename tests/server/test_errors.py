"""Every way to fail: status, envelope, the field at fault; and that the next request works."""

import ast
import asyncio
import inspect
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from lookm.errors import QueueFullError
from lookm.types import Request, TokenEvent
from server.api_errors import CODES
from server.media import videos
from server.settings import Settings
from tests.server.asgi_client import Visit
from tests.server.bad_requests import BAD, URL, VIDEO, file, video
from tests.server.requests import (
    CHAT,
    begins,
    chat,
    data_url,
    events,
    image,
    never,
    says,
    says_after,
    serving,
    until,
)

pytestmark = pytest.mark.anyio


def check_error(response: httpx.Response, status: int, code: str, param: str | None) -> None:
    """The envelope, whole and nothing else."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error["message"]
    assert error["type"] == CODES[code].type
    assert error["message"].strip()


# One fails after the first event and so in the stream; the other is about not streaming.
NOT_STREAMED = ("failed by the engine", "usage without stream")


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        pytest.param({**bad[1], "stream": stream}, *bad[2:], id=f"{bad[0]}, stream={stream}")
        for bad in BAD
        for stream in (False, True)
        if not (stream and bad[0] in NOT_STREAMED)
    ],
)
async def test_bad_requests_are_refused_and_the_next_is_served(
    client: httpx.AsyncClient, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    check_error(await client.post(CHAT, json=chat(**fields)), status, code, param)
    assert (await client.post(CHAT, json=chat("and now?"))).status_code == 200


NOT_JSON = [
    (b"", "invalid_json"),
    (b"{", "invalid_json"),
    (b"\xff\xfe", "invalid_json"),
    (b'{"model": "\\ud800"}', "invalid_json"),
    (b"[" * 100_000, "invalid_json"),
    (b"[]", "invalid_type"),
    (b'"text"', "invalid_type"),
    (b'{"model": "fake", "messages": [{"role": "user", "content": ""}], "top_p": NaN}', "top_p"),
]


@pytest.mark.parametrize(("body", "code"), NOT_JSON)
async def test_bodies_that_are_not_a_json_object(
    client: httpx.AsyncClient, body: bytes, code: str
) -> None:
    response = await client.post(CHAT, content=body)
    if code == "top_p":
        check_error(response, 400, "invalid_value", "top_p")
    else:
        check_error(response, 400, code, None)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/tokenize"])
@pytest.mark.parametrize(
    "kind",
    ["text/plain", "text/plain; charset=utf-8", "application/x-www-form-urlencoded", "x", ""],
)
async def test_what_a_web_page_may_send_by_itself_is_not_taken_for_json(
    client: httpx.AsyncClient, kind: str, path: str
) -> None:
    content = json.dumps(chat())
    headers = {"content-type": kind, "origin": "http://a.page"}
    response = await client.post(path, content=content, headers=headers)
    check_error(response, 415, "unsupported_media_type", None)
    assert "application/json" in response.json()["error"]["message"]


JSON_NAMES = ("Application/JSON; charset=utf-8", "application/problem+json")


@pytest.mark.parametrize(
    "headers",
    [
        *({"content-type": kind, "origin": "http://a.page"} for kind in JSON_NAMES),
        {"content-type": "application/x-www-form-urlencoded"},
        {},
    ],
    ids=[*JSON_NAMES, "curl -d", "nothing said"],
)
async def test_json_is_taken_by_any_of_its_names_and_from_curl_by_any(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await client.post(CHAT, content=json.dumps(chat()), headers=headers)
    assert response.status_code == 200


async def test_missing_fields_are_named(client: httpx.AsyncClient) -> None:
    check_error(await client.post(CHAT, json={}), 400, "missing_required_parameter", "model")


async def test_a_typo_gets_a_hint(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat(temprature=1))
    assert "Did you mean 'temperature'?" in response.json()["error"]["message"]


async def test_wrong_routes_and_methods(client: httpx.AsyncClient) -> None:
    check_error(await client.get("/v1/nothing"), 404, "not_found", None)
    check_error(await client.get("/v1/models/gpt-6"), 404, "model_not_found", "model")
    check_error(await client.get("/v1/models/fake:zip"), 404, "model_not_found", "model")
    check_error(await client.get("/v1/responses/resp_x"), 404, "response_not_found", None)
    response = await client.get(CHAT)
    check_error(response, 405, "method_not_allowed", None)
    assert response.headers["allow"] == "POST"


async def test_a_body_over_the_limit_is_refused_with_and_without_a_length() -> None:
    async with serving(Settings(model="fake", max_body=2000), says) as (client, _, _app):
        large = json.dumps(chat("x" * 3000)).encode()

        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(large), 500):
                yield large[at : at + 500]

        check_error(await client.post(CHAT, content=large), 413, "body_too_large", None)
        check_error(await client.post(CHAT, content=chunks()), 413, "body_too_large", None)
        assert (await client.post(CHAT, json=chat())).status_code == 200


async def test_bodies_together_are_bounded_until_their_answers_begin() -> None:
    release = asyncio.Event()
    body = chat("x " * 600)
    settings = Settings(model="fake", max_body_total=2000)
    async with serving(settings, says_after(release)) as (client, engine, _):
        held = asyncio.create_task(client.post(CHAT, json=body))
        await until(lambda: engine.open == 1)
        check_error(await client.post(CHAT, json=body), 429, "queue_full", None)
        release.set()
        assert (await held).status_code == 200
        assert (await client.post(CHAT, json=body)).status_code == 200


async def test_a_missing_or_wrong_key_is_refused_everywhere_but_at_probes_and_pages() -> None:
    async with serving(Settings(model="fake", api_keys="one,two"), says) as (client, _, _app):
        for headers in ({}, {"authorization": "Bearer x"}, {"authorization": "Basic one"}):
            response = await client.post(CHAT, json=chat(), headers=headers)
            check_error(response, 401, "invalid_api_key", None)
            assert response.headers["www-authenticate"] == "Bearer"
        closed = ("/v1/models", "/metrics", "/version", "/nothing", "/playground")
        for route in closed:
            check_error(await client.get(route), 401, "invalid_api_key", None)
        for page in ("/", "/playground/main.js", "/docs", "/redoc", "/openapi.json"):
            assert (await client.get(page)).status_code == 200
        for path in ("/playground/../v1/models", "/static-offline-docs/../v1/models"):
            assert (await client.get(httpx.URL(path=path))).status_code in (401, 404)
        for key in ("one", "two"):
            headers = {"authorization": f"Bearer {key}"}
            assert (await client.post(CHAT, json=chat(), headers=headers)).status_code == 200
        for route in ("/healthz", "/readyz"):
            assert (await client.get(route)).status_code == 200


async def test_a_key_over_its_limits_or_beside_its_policies_is_told(tmp_path: Path) -> None:
    limits = tmp_path / "keys.toml"
    limits.write_text('[keys.a]\nkey = "k"\nrequests_per_minute = 1\npolicies = ["full"]\n')
    headers = {"authorization": "Bearer k"}
    async with serving(Settings(model="fake", key_limits=limits), says) as (client, _, _app):
        response = await client.post(CHAT, json=chat(kv_cache="h2o"), headers=headers)
        check_error(response, 403, "policy_not_allowed", "kv_cache")
        response = await client.post(CHAT, json=chat(), headers=headers)
        check_error(response, 429, "rate_limit_exceeded", None)


async def test_a_full_queue_says_when_to_come_back() -> None:
    async def full(_: Request) -> AsyncIterator[TokenEvent]:
        raise QueueFullError("256 requests are waiting. Try again later.")
        yield

    async with serving(Settings(model="fake"), full) as (client, _, _app):
        response = await client.post(CHAT, json=chat(stream=True))
        check_error(response, 429, "queue_full", None)
        assert int(response.headers["retry-after"]) >= 1


async def test_requests_beyond_the_bound_are_refused_before_their_images_are_read() -> None:
    release = asyncio.Event()
    settings = Settings(model="fake", max_running=1, max_waiting=1)
    async with serving(settings, says_after(release)) as (client, engine, _):
        held = [asyncio.create_task(client.post(CHAT, json=chat())) for _ in range(2)]
        await until(lambda: engine.open == 2)
        response = await client.post(CHAT, json=chat(image("http://127.0.0.1/x.png")))
        check_error(response, 429, "queue_full", None)
        release.set()
        assert [(await each).status_code for each in held] == [200, 200]
        assert (await client.post(CHAT, json=chat())).status_code == 200


async def test_before_the_model_is_loaded_only_the_process_is_healthy() -> None:
    loaded = asyncio.Event()

    async def loading() -> None:
        await loaded.wait()

    settings = Settings(model="fake")
    async with serving(settings, says, loading=loading, wait=False) as (client, _, app):
        assert (await client.get("/healthz")).status_code == 200
        for response in (
            await client.get("/readyz"),
            await client.post(CHAT, json=chat()),
            await client.get("/v1/models"),
        ):
            check_error(response, 503, "engine_unavailable", None)
            assert int(response.headers["retry-after"]) >= 1
        loaded.set()
        await app.state.services.booting
        assert (await client.get("/readyz")).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_the_deadline_ends_a_request_that_takes_too_long(stream: bool) -> None:
    settings = Settings(model="fake", request_timeout_s=0.02)
    async with serving(settings, never) as (client, engine, _):
        response = await client.post(CHAT, json=chat(stream=stream))
        check_error(response, 504, "deadline_exceeded", None)
        assert engine.open == 0


async def test_the_deadline_also_ends_a_stream_that_has_begun() -> None:
    settings = Settings(model="fake", request_timeout_s=0.4)
    async with serving(settings, begins) as (client, engine, _):
        response = await client.post(CHAT, json=chat(stream=True))
        *_, last = events(response.text)
        assert last["error"]["code"] == "deadline_exceeded"
        assert engine.open == 0


async def test_a_bug_is_reported_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    secret = "s" + "ecret from the prompt"

    async def breaks(_: Request) -> AsyncIterator[TokenEvent]:
        raise KeyError(secret)
        yield

    async with serving(Settings(model="fake"), breaks) as (client, _, _app):
        for stream in (False, True):
            response = await client.post(CHAT, json=chat(stream=stream))
            check_error(response, 500, "internal_error", None)
            assert secret not in response.text
    assert "KeyError" in caplog.text
    assert secret not in caplog.text


async def test_a_failure_after_the_first_byte_is_an_error_event_and_a_clean_end(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post(CHAT, json=chat("fake:error", stream=True))
    assert response.status_code == 200
    assert "event: error\ndata: {" in response.text
    *chunks, last = events(response.text)
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "word0", " word1"]
    assert last["error"]["code"] == "engine_failed"


async def test_a_dead_worker_fails_its_requests_and_is_replaced(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat("fake:exit"))
    check_error(response, 503, "engine_failed", None)
    again = await client.post(CHAT, json=chat())
    check_error(again, 503, "engine_unavailable", None)
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/readyz")).status_code == 503


async def test_a_prompt_that_kills_workers_is_refused(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    for _ in range(2):
        response = await client.post(CHAT, json=chat("fake:exit", "poison"))
        check_error(response, 503, "engine_failed", None)
        await app.state.services.engine.wait_ready(30)
    response = await client.post(CHAT, json=chat("fake:exit", "poison"))
    check_error(response, 422, "prompt_refused", None)
    assert (await client.post(CHAT, json=chat("fake:slow", "poison"))).status_code == 200


async def test_a_worker_that_dies_in_mid_stream_ends_it_with_an_error_event(app: FastAPI) -> None:
    engine = app.state.services.engine
    await engine.wait_ready(30)
    visit = Visit(app, chat("fake:slow", stream=True, max_tokens=5000))
    await visit.first_byte.wait()
    os.kill(engine.pid, signal.SIGKILL)
    await visit.task
    assert visit.sent[0]["status"] == 200
    *_, last = events(b"".join(each.get("body", b"") for each in visit.sent).decode())
    assert last["error"]["code"] == "engine_failed"
    await engine.wait_ready(30)


async def test_unreachable_images_are_the_callers_fault(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, json=chat(image("http://nothing.invalid/a.png")))
    check_error(response, 400, "image_fetch_failed", URL)


async def test_unreachable_files_are_the_callers_fault(client: httpx.AsyncClient) -> None:
    part = file(file_url="http://nothing.invalid/a.pdf")
    response = await client.post(CHAT, json=chat(part))
    check_error(response, 400, "file_fetch_failed", "messages[0].content[0].file.file_url")


async def test_videos_that_cannot_be_taken_are_the_callers_fault(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos, "reads_video", lambda: True)
    response = await client.post(CHAT, json=chat(video("http://nothing.invalid/a.mp4")))
    check_error(response, 400, "video_fetch_failed", VIDEO)
    response = await client.post(CHAT, json=chat(video(data_url(b"\0\0\0\x20ftypisom"))))
    check_error(response, 400, "invalid_video", VIDEO)
    async with serving(Settings(model="fake", media_max_video_bytes=10), says) as (small, _, _app):
        response = await small.post(CHAT, json=chat(video(data_url())))
        check_error(response, 400, "video_too_large", VIDEO)


async def test_a_body_that_does_not_arrive_is_a_timeout() -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with serving(Settings(model="fake", receive_timeout_s=0.01), says) as (client, _, _app):
        response = await client.post(CHAT, content=stuck())
        check_error(response, 408, "request_timeout", None)


def test_no_code_is_untested() -> None:
    """Every code of the table is expected by a test of this file, whichever of them run now."""
    expected = {code for *_, code, _ in BAD} | {code for _, code in NOT_JSON} - {"top_p"}
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[__name__]))):
        match node:
            case ast.Call(ast.Name("check_error"), [_, _, ast.Constant(code), _]):
                expected.add(code)
    assert set(CODES) == expected
