"""Downloads one image or file over http(s), from the very address that was checked.

Works on an httpx transport and not on a client: a client would add cookies, redirects, proxies,
credentials from the environment and decompression, none of which an untrusted URL should get.
(Cookies last as long as the redirects of one URL: `cookies`.)

    name -> look up -> all addresses allowed? -> connect to one of *those*, Host/SNI/certificate of
    the name -> 200: read within the limits;  3xx: start over with the new URL, at most 3 times
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from ipaddress import IPv6Address, ip_address

import httpx

from server.media.address import (
    Address,
    check_addresses,
    host_of,
    literal_address,
    parse_url,
)
from server.media.config import MediaConfig
from server.media.cookies import Cookies
from server.media.media_error import MediaError

Resolver = Callable[[str], Awaitable[list[Address]]]
Take = Callable[[int], None]  # is told of bytes as they arrive, and raises where it is too much

REDIRECTS = frozenset((301, 302, 303, 307, 308))
MAX_ADDRESSES = 4  # tried in turn where one does not answer
NUM_RESOLVERS = 8


class SystemResolver:
    """`getaddrinfo` in threads of its own, so that slow name servers stall nothing else."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_RESOLVERS, thread_name_prefix="media-dns")

    async def __call__(self, host: str) -> list[Address]:
        """Every address of `host`, IPv4 first. Raises `OSError`."""
        look_up = asyncio.get_running_loop().run_in_executor(self._pool, _look_up, host)
        return sorted(await look_up, key=lambda address: address.version)

    def close(self) -> None:
        """Let the threads end; nothing waits for a look-up under way."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str) -> set[Address]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return {ip_address(str(entry[4][0])) for entry in found}


class Fetcher:
    """Downloads for one `MediaLoader`. `transport` and `resolve` are replaced in tests."""

    def __init__(
        self,
        config: MediaConfig,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        resolve: Resolver | None = None,
    ) -> None:
        self._config = config
        self._system = SystemResolver() if resolve is None else None
        self._resolve: Resolver = self._system or resolve  # type: ignore[assignment]
        # No connection is kept (see also `connection: close`): the pool knows them by address, and
        # one whose certificate was checked for a name must not serve another name there.
        self._transport = transport or httpx.AsyncHTTPTransport(
            trust_env=False, http2=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def fetch(self, text: str, take: Take) -> bytes:
        """The bytes behind a URL. Raises `MediaError`."""
        limit_s = self._config.fetch_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._follow(text, take)
        except TimeoutError as error:
            raise _failed(f"The download took longer than {limit_s:g} s.") from error
        except httpx.TimeoutException as error:
            raise _failed("The URL's host does not answer.") from error
        except httpx.HTTPError as error:
            raise _failed("The connection to the URL's host failed.") from error

    async def aclose(self) -> None:
        """Close what is open."""
        await self._transport.aclose()
        if self._system is not None:
            self._system.close()

    async def _follow(self, text: str, take: Take) -> bytes:
        url, cookies = parse_url(text, self._config), Cookies()
        for _ in range(self._config.max_redirects + 1):
            response = await self._send(url, cookies.header(url))
            assert isinstance(response.stream, httpx.AsyncByteStream)
            async with aclosing(response.stream) as body:
                if response.status_code not in REDIRECTS:
                    self._check_head(response)
                    return await self._read(body, take)
                cookies.add(url, response)
                url = self._redirected(url, response)
        raise _failed(
            f"The URL redirects more than {self._config.max_redirects} times. Send the last URL."
        )

    def _redirected(self, url: httpx.URL, response: httpx.Response) -> httpx.URL:
        location = response.headers.get("location", "")
        try:
            target = str(url.join(location))
        except (httpx.InvalidURL, ValueError) as error:
            raise _failed("The URL redirects to something that is no URL.") from error
        return parse_url(target, self._config)

    async def _send(self, url: httpx.URL, cookie: dict[str, str]) -> httpx.Response:
        """The response's head, from the first of the host's addresses that takes a connection."""
        addresses = await self._addresses(url)
        for address in addresses[:-1]:
            try:
                return await self._request(url, address, cookie)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._request(url, addresses[-1], cookie)

    async def _addresses(self, url: httpx.URL) -> list[Address]:
        host = host_of(url)
        literal = literal_address(host)
        try:
            found = [literal] if literal is not None else await self._resolve(host)
        except (OSError, UnicodeError) as error:
            raise _failed("The host name of the URL cannot be resolved.") from error
        if not found:
            raise _failed("The host name of the URL has no address.")
        return check_addresses(found, self._config)[:MAX_ADDRESSES]

    async def _request(
        self, url: httpx.URL, address: Address, cookie: dict[str, str]
    ) -> httpx.Response:
        pinned = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
        limit_s, connect_s = self._config.fetch_timeout_s, self._config.connect_timeout_s
        timeout = httpx.Timeout(limit_s, connect=connect_s)
        request = httpx.Request(
            "GET",
            url.copy_with(host=pinned),
            headers={
                "host": url.netloc.decode("ascii"),
                "user-agent": "lookm-server",
                "accept": "image/*, video/*, application/pdf",
                "accept-encoding": "identity",
                "connection": "close",
                **cookie,
            },
            extensions={"timeout": timeout.as_dict(), "sni_hostname": host_of(url)},
        )
        return await self._transport.handle_async_request(request)

    def _check_head(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            raise _failed(f"The URL's host answered with status {response.status_code}, not 200.")
        if response.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            raise _failed("The URL's host compressed its answer although asked not to.")
        declared = response.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit():
            self._check_size(int(declared[:18]))

    async def _read(self, body: httpx.AsyncByteStream, take: Take) -> bytes:
        data = bytearray()
        async for chunk in body:
            data += chunk
            self._check_size(len(data))
            take(len(chunk))
        return bytes(data)

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._config.max_bytes:
            raise too_many_bytes(self._config)


def too_many_bytes(config: MediaConfig) -> MediaError:
    """The error for one image or file over its limit of encoded bytes."""
    return MediaError(
        "image_too_large",
        f"It has more than {config.max_bytes} bytes. Send a smaller or more compressed one.",
    )


def _failed(message: str) -> MediaError:
    return MediaError("image_fetch_failed", message)
