"""Request ids, browsers, and a log without anything private in it."""

import logging

import httpx
import pytest

from server.settings import Settings
from tests.server.asgi_client import Visit
from tests.server.requests import CHAT, begins, chat, data_url, image, says, serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("given", "kept"), [("trace-1.a_B", True), ("x" * 65, False), ("a b", False), ("", False)]
)
async def test_sane_request_ids_are_kept_and_others_replaced(
    client: httpx.AsyncClient, given: str, kept: bool
) -> None:
    for route in ("/healthz", "/nothing"):
        returned = (await client.get(route, headers={"x-request-id": given})).headers
        assert (returned["x-request-id"] == given) == kept
        assert returned["x-request-id"]


async def test_a_sane_session_id_is_sent_back_also_with_errors_and_streams(
    client: httpx.AsyncClient,
) -> None:
    headers = {"x-session-id": "chat-7"}
    for answered in (
        await client.post(CHAT, json=chat(), headers=headers),
        await client.post(CHAT, json=chat(stream=True), headers=headers),
        await client.post(CHAT, json={}, headers=headers),
    ):
        assert answered.headers["x-session-id"] == "chat-7"
    for given in ("a b", "x" * 65, ""):
        refused = await client.get("/healthz", headers={"x-session-id": given})
        assert (refused.status_code, refused.headers.get("x-session-id")) == (200, None)


async def test_cors_is_off_unless_configured(client: httpx.AsyncClient) -> None:
    headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
    response = await client.get("/healthz", headers=headers)
    assert "access-control-allow-origin" not in response.headers
    settings = Settings(model="fake", cors_origins="https://a.example", api_keys="k")
    async with serving(settings, says) as (browser, _, _app):
        preflight = await browser.options(CHAT, headers=headers)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://a.example"
        private = headers | {"access-control-request-private-network": "true"}
        preflight = await browser.options(CHAT, headers=private)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-private-network"] == "true"
        plain = await browser.get("/healthz", headers={"origin": "https://a.example"})
        assert "x-request-id" in plain.headers["access-control-expose-headers"]
        other = await browser.get("/healthz", headers={"origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_one_line_a_request_with_its_id_first_and_nothing_private(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="lookm")
    headers = {"authorization": "Bearer secret-key", "x-request-id": "trace-7"}
    body = chat("secret-words", image(), kv_cache="look-m@0.5", user="secret-user")
    bad = chat(image("http://127.0.0.1/secret-path?secret=1"), secret_field=1)
    async with serving(Settings(model="fake", api_keys="secret-key"), says) as (client, _, _app):
        await client.post(CHAT + "?secret=1", json=body, headers=headers)
        await client.post(CHAT, json=bad, headers=headers)
        del bad["secret_field"]
        await client.post(CHAT, json=bad, headers=headers)
        await client.get("/secret-route", headers=headers)
    lines = [r.getMessage() for r in caplog.records if r.name == "lookm.access"]
    assert len(lines) == 4
    assert lines[0].startswith("trace-7 POST /v1/chat/completions 200 ")
    assert "method=look-m prompt=65 image_tokens=64 kept=32 generated=3 finish=stop" in lines[0]
    assert lines[1].endswith("code=unknown_parameter")
    assert lines[2].endswith("code=invalid_image_url")
    assert "secret" not in caplog.text
    assert data_url()[:40] not in caplog.text


async def test_the_log_says_when_the_client_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="lookm")
    async with serving(Settings(model="fake"), begins) as (_, _engine, app):
        visit = Visit(app, chat(stream=True))
        await visit.first_byte.wait()
        await visit.leave()
    (line,) = [r.getMessage() for r in caplog.records if r.name == "lookm.access"]
    assert line.endswith("generated=1 client left")


async def test_keys_may_come_from_a_file(tmp_path: object) -> None:
    path = tmp_path / "keys"  # type: ignore[operator]
    path.write_text("from-file\n\n")
    async with serving(Settings(model="fake", api_key_file=path), says) as (client, _, _app):
        assert (await client.get("/version")).status_code == 401
        headers = {"authorization": "Bearer from-file"}
        assert (await client.get("/version", headers=headers)).status_code == 200


async def test_head_is_answered_as_get(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/v1/models", "/health", "/metrics", "/version", "/docs"):
        assert (await client.head(path)).status_code == 200
    assert (await client.get("/health")).json() == {"status": "ok"}
    assert (await client.head("/nothing")).status_code == 404
    assert (await client.head(CHAT)).status_code == 405


async def test_health_asks_for_no_key() -> None:
    async with serving(Settings(model="fake", api_keys="k"), says) as (client, *_):
        for path in ("/health", "/healthz", "/ping", "/readyz", "/ping/"):
            assert (await client.head(path)).status_code == 200
            assert (await client.get(path)).json()["status"] in ("ok", "ready")
