"""Real sockets on 127.0.0.1: pinning, certificates, slow and endless bodies."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from server.media import MediaConfig, MediaError, MediaLoader
from server.media.fetch import SystemResolver
from tests.server.media.conftest import encode, picture, resolver
from tests.server.requests import data_url

PNG = encode(picture())
HERE = resolver({"good.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})
Write = Callable[[asyncio.StreamWriter], Awaitable[None]]

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def serving(
    write: Write, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[int, list[str]]]:
    """A server that answers every request with `write`; its port, and the Host headers it saw."""
    hosts: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            hosts.extend(line[6:] for line in head.split("\r\n") if line.startswith("host: "))
            await write(writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1], hosts
    finally:
        server.close()


@asynccontextmanager
async def loader(
    transport: httpx.AsyncBaseTransport | None = None, **config: object
) -> AsyncIterator[MediaLoader]:
    made = MediaLoader(
        MediaConfig(**({"allow_private": True} | config)), transport=transport, resolve=HERE
    )
    try:
        yield made
    finally:
        await made.aclose()


async def send_png(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(PNG) + PNG)
    await writer.drain()


async def test_connection_goes_to_the_resolved_address_with_the_name_as_host() -> None:
    async with serving(send_png) as (port, hosts), loader() as load:
        assert (await load.load(f"http://good.test:{port}/a.png")).width == 8
        assert hosts == [f"good.test:{port}"]


async def test_loopback_is_refused_by_default_and_nothing_connects() -> None:
    async with serving(send_png) as (port, hosts):
        async with loader(allow_private=False, allowed_ports=frozenset((port,))) as load:
            for host in ("good.test", "127.0.0.1", "[::ffff:127.0.0.1]"):
                with pytest.raises(MediaError, match="public"):
                    await load.load(f"http://{host}:{port}/a.png")
        assert hosts == []


async def test_dripping_body_ends_at_the_time_limit() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with serving(drip) as (port, _), loader(fetch_timeout_s=0.2) as load:
        with pytest.raises(MediaError, match=r"longer than 0\.2 s") as failed:
            await load.load(f"http://good.test:{port}/")
        assert failed.value.code == "image_fetch_failed"


async def test_silent_host_ends_at_the_time_limit() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async with serving(silent) as (port, _), loader(fetch_timeout_s=0.2) as load:
        with pytest.raises(MediaError) as failed:
            await load.load(f"http://good.test:{port}/")
        assert failed.value.code == "image_fetch_failed"


async def test_endless_body_ends_at_the_byte_limit() -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
            await writer.drain()

    async with serving(endless) as (port, _), loader(max_bytes=100_000) as load:
        with pytest.raises(MediaError) as failed:
            await load.load(f"http://good.test:{port}/")
        assert failed.value.code == "image_too_large"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 200_000 + b"\r\n\r\n",
    ],
    ids=["nothing", "no-http", "short", "bad-chunk", "huge-head"],
)
async def test_broken_answer_is_a_media_error(answer: bytes) -> None:
    async def broken(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    async with serving(broken) as (port, _), loader() as load:
        with pytest.raises(MediaError) as failed:
            await load.load(f"http://good.test:{port}/")
        assert failed.value.code == "image_fetch_failed"


async def test_slow_downloads_do_not_hold_up_images_sent_inline() -> None:
    release = asyncio.Event()

    async def wait(writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await send_png(writer)

    async with serving(wait) as (port, _), loader(max_fetches=1) as load:
        slow = [asyncio.create_task(load.load(f"http://good.test:{port}/")) for _ in range(2)]
        assert (await load.load(data_url(PNG))).width == 8
        assert not any(task.done() for task in slow)
        release.set()
        assert [loaded.width for loaded in await asyncio.gather(*slow)] == [8, 8]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
async def test_certificate_must_be_for_the_name_and_not_for_the_address(tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    options = "-keyout key.pem -out cert.pem -subj /CN=t -addext subjectAltName=DNS:good.test"
    subprocess.run(
        [*command.split(), *options.split()], cwd=tmp_path, check=True, capture_output=True
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    names: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    async with (
        serving(send_png, server) as (port, _),
        loader(httpx.AsyncHTTPTransport(verify=trusting, trust_env=False)) as load,
    ):
        assert (await load.load(f"https://good.test:{port}/")).width == 8
        with pytest.raises(MediaError, match="connection"):
            await load.load(f"https://other.test:{port}/")
        with pytest.raises(MediaError, match="connection"):
            await load.load(f"https://127.0.0.1:{port}/")
    assert names == ["good.test", "other.test", None]


async def test_certificate_nobody_signed_is_refused(tmp_path: Path) -> None:
    made = MediaLoader(MediaConfig(allow_private=True), resolve=HERE)
    context = made._fetcher._transport._pool._ssl_context  # type: ignore[attr-defined]
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    await made.aclose()


async def test_system_resolver_knows_localhost_and_not_nonsense() -> None:
    resolve = SystemResolver()
    assert "127.0.0.1" in map(str, await resolve("localhost"))
    with pytest.raises(OSError, match=r".*"):
        await resolve("name.invalid")
    resolve.close()
