"""Bodies: as many as fit succeed, the largest goes first, small ones are never refused for it."""

import asyncio
import codecs
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from server.api_errors import ApiError
from server.bodies import Bodies, BodyLimit, Inflate, OneLength
from server.settings import Settings
from tests.server.requests import CHAT, chat, image, says, serving
from tests.server.test_errors import check_error

pytestmark = pytest.mark.anyio

PACKED = gzip.compress(b"{}", mtime=0)  # tests are named by it: the same bytes in every process


class Upload:
    """One body on its way through `BodyLimit`, a piece when the test says so."""

    def __init__(self, limit: type[Any] | Any, declared: int | None = None) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.status: int | None = None
        headers = [(b"content-length", str(declared).encode())] if declared else []
        scope = {"type": "http", "headers": headers}
        self.task = asyncio.ensure_future(self._run(limit, scope))

    async def _run(self, limit: Any, scope: Any) -> None:
        try:
            await limit(scope, self._receive, self._send)
        except ApiError as error:
            self.status = error.status

    async def piece(self, size: int) -> None:
        await self._pieces.put(b"x" * size)
        await settle()

    async def end(self) -> None:
        await self._pieces.put(None)
        await settle()

    async def _receive(self) -> dict[str, Any]:
        piece = await self._pieces.get()
        more = piece is not None
        return {"type": "http.request", "body": piece or b"", "more_body": more}

    async def _send(self, message: Any) -> None:
        self.status = self.status or message.get("status")


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def answers(scope: Any, receive: Any, send: Any) -> None:
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200})


def limited(max_bytes: int, total: int) -> tuple[BodyLimit, Bodies]:
    bodies = Bodies(total)
    return BodyLimit(answers, max_bytes, bodies), bodies


async def test_of_twelve_at_once_as_many_succeed_as_fit() -> None:
    limit, bodies = limited(100, 700)
    uploads = [Upload(limit) for _ in range(12)]
    for _ in range(10):
        for upload in uploads:
            await upload.piece(10)
    for upload in uploads:
        await upload.end()
    await asyncio.gather(*(upload.task for upload in uploads))
    assert sorted(upload.status for upload in uploads) == [200] * 7 + [429] * 5
    assert bodies.held_bytes == 0


async def test_the_largest_that_arrives_goes_not_who_sends_little() -> None:
    limit, bodies = limited(1000, 1000)
    large, small = Upload(limit), Upload(limit)
    await large.piece(950)
    await small.piece(60)
    assert large.status == 429, "though it was waiting for its client"
    assert bodies.held_bytes == 60
    await small.end()
    assert small.status == 200


async def test_what_cannot_fit_is_refused_before_it_is_read() -> None:
    limit, bodies = limited(1000, 1000)
    held = Upload(limit)
    await held.piece(500)
    for declared, status in ((501, 429), (1001, 413), (10**30, 413)):
        upload = Upload(limit, declared)
        await upload.task
        assert upload.status == status
        assert upload._pieces.empty()
    assert bodies.held_bytes == 500
    await held.end()


async def test_declared_bytes_that_do_not_come_hold_nothing() -> None:
    limit, _ = limited(1000, 1000)
    idle = [Upload(limit, 1000) for _ in range(5)]
    await settle()
    upload = Upload(limit, 1000)
    await upload.piece(1000)
    await upload.end()
    assert upload.status == 200
    for each in idle:
        each.task.cancel()


async def test_a_gzip_body_is_read() -> None:
    body = json.dumps(chat()).encode()
    two_members = gzip.compress(body[:20]) + gzip.compress(body[20:])
    async with serving(Settings(model="fake"), says) as (client, *_):
        for packed in (gzip.compress(body), two_members):
            for encoding in ("gzip", "GZIP", "x-gzip"):
                headers = {"content-encoding": encoding}
                answer = await client.post(CHAT, content=packed, headers=headers)
                assert answer.status_code == 200, answer.text
        in_pieces = client.post(
            CHAT, content=dripped(gzip.compress(body)), headers={"content-encoding": "gzip"}
        )
        assert (await in_pieces).status_code == 200
        plain = await client.post(CHAT, content=body, headers={"content-encoding": "identity"})
        assert plain.status_code == 200


async def dripped(data: bytes) -> AsyncIterator[bytes]:
    for n in range(len(data)):
        yield data[n : n + 1]


async def test_a_gzip_bomb_is_refused_at_the_limit_of_a_body() -> None:
    bomb = gzip.compress(bytes(2**24), 9)
    produced = 0

    async def counts(scope: Any, receive: Any, send: Any) -> None:
        nonlocal produced
        while (message := await receive())["more_body"]:
            produced += len(message["body"])

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bomb, "more_body": False}

    app = Inflate(BodyLimit(counts, 2**20, Bodies(2**30)))
    scope = {"type": "http", "headers": [(b"content-encoding", b"gzip")]}
    with pytest.raises(Exception, match="larger than"):
        await app(scope, receive, None)  # type: ignore[arg-type]
    assert produced <= 2**20
    async with serving(Settings(model="fake", max_body="1MiB"), says) as (client, *_):
        answer = await client.post(CHAT, content=bomb, headers={"content-encoding": "gzip"})
        check_error(answer, 413, "body_too_large", None)


@pytest.mark.parametrize(
    "packed",
    [b"{}", PACKED[:-1], PACKED + b"x", zlib.compress(b"{}"), b""],
)
async def test_what_is_no_gzip_is_refused(client: httpx.AsyncClient, packed: bytes) -> None:
    answer = await client.post(CHAT, content=packed, headers={"content-encoding": "gzip"})
    check_error(answer, 400, "invalid_value", None)


@pytest.mark.parametrize("encoding", ["br", "zstd", "deflate", "gzip, gzip"])
async def test_other_encodings_are_refused_by_name(
    client: httpx.AsyncClient, encoding: str
) -> None:
    answer = await client.post(CHAT, content=b"{}", headers={"content-encoding": encoding})
    check_error(answer, 415, "unsupported_media_type", None)
    assert "Content-Encoding" in answer.text


async def test_a_byte_order_mark_is_skipped(client: httpx.AsyncClient) -> None:
    for parts in ((), (image("data:image/png;base64," + "A" * 5_000_000),)):
        body = codecs.BOM_UTF8 + json.dumps(chat(*parts, model="nobody")).encode()
        answer = await client.post(CHAT, content=body)
        check_error(answer, 404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("version", "lengths", "status"),
    [
        ("1.1", ("content-length",), 200),
        ("1.1", ("transfer-encoding",), 200),
        ("1.1", ("content-length", "transfer-encoding"), 400),
        ("1.0", ("transfer-encoding",), 400),
    ],
)
async def test_a_body_has_one_length(version: str, lengths: tuple[str, ...], status: int) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(name.encode(), b"5") for name in lengths]
    scope = {"type": "http", "http_version": version, "headers": headers}
    await OneLength(answers)(scope, whole, send)
    assert sent[0]["status"] == status
    assert ((b"connection", b"close") in sent[0].get("headers", [])) == (status == 400)


async def whole() -> dict[str, Any]:
    return {"type": "http.request", "body": b"hello", "more_body": False}
