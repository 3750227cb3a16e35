"""One request, streamed, on the clock: when its text came, what it cost, or how it failed.

Knows HTTP and server-sent events as OpenAI's API has them. Tokens are counted by the server's
`usage`, never by pieces of text: a piece may hold several tokens, or none may come for one.
Nothing is raised for a failed request: it is a `Sample` with an `error`.
"""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from server.bench.load.workload import Ask

CHAT = "/v1/chat/completions"
MODELS = "/v1/models"
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server. `url` is with or without `/v1`; `timeout_s` bounds one request, whole."""

    url: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 600.0

    @property
    def base_url(self) -> str:
        """Without `/v1`."""
        return self.url.rstrip("/").removesuffix("/v1")

    @property
    def headers(self) -> dict[str, str]:
        """The key, where there is one."""
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}

    def connect(self) -> httpx.AsyncClient:
        """A client with as many connections as are opened: the queue is the server's."""
        return httpx.AsyncClient(
            base_url=self.base_url,
            headers=self.headers,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )


def first_model(target: Target) -> str:
    """The first model that the server lists. Raises `ValueError`."""
    try:
        response = httpx.get(f"{target.base_url}{MODELS}", headers=target.headers)
        response.raise_for_status()
        return str(response.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        message = f"{target.base_url} lists no model ({error}): give one with --model"
        raise ValueError(message) from None


@dataclass(slots=True)
class Sample:
    """What one request took. Times are seconds from the start of the run.

    `due_s` is when it should have been sent (latencies count from here), `sent_s` when it was;
    `piece_s` are the arrivals of its pieces of text; `end_s` is when the answer was complete or
    failed. `error` is a kind, None where the answer was complete. `kv_bytes` and `kv_full_bytes`
    are this server's own report: what its prompt's cache took, and would take at full.
    `cached_tokens` of the prompt were not computed again; `keep` is the fraction it took.
    """

    index: int
    policy: str
    due_s: float
    sent_s: float
    piece_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    finish: str | None = None
    error: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    kv_bytes: int | None = None
    kv_full_bytes: int | None = None
    cached_tokens: int | None = None
    keep: float | None = None
    pieces: list[str] = field(default_factory=list)

    @property
    def first_s(self) -> float:
        """When the first text came; an answer without text counts at its end."""
        return self.piece_s[0] if self.piece_s else self.end_s

    @property
    def ttft_s(self) -> float:
        """Time to first token, from when the request was due."""
        return self.first_s - self.due_s

    @property
    def e2e_s(self) -> float:
        """From when the request was due to the end of its answer."""
        return self.end_s - self.due_s

    @property
    def gaps_s(self) -> list[float]:
        """Between one piece of text and the next: what a reader waits."""
        return [after - before for before, after in itertools.pairwise(self.piece_s)]


async def ask(
    http: httpx.AsyncClient, request: Ask, *, due_s: float, zero_s: float, timeout_s: float
) -> Sample:
    """Send one request now; `zero_s` is the run's start on the monotonic clock."""
    sample = Sample(request.index, request.policy, due_s, time.monotonic() - zero_s)
    await answer(http, request, sample, zero_s=zero_s, timeout_s=timeout_s)
    return sample


async def answer(
    http: httpx.AsyncClient, request: Ask, sample: Sample, *, zero_s: float, timeout_s: float
) -> None:
    """The same into a sample that is read meanwhile; cancelled, it has what came until then."""
    try:
        async with asyncio.timeout(timeout_s):
            await _stream(http, request, sample, zero_s)
    except TimeoutError:
        sample.error = "timeout"
    except (httpx.ConnectError, httpx.ConnectTimeout):
        sample.error = "connect"
    except httpx.TransportError:
        sample.error = "dropped"
    except ValueError:
        sample.error = "not_json"
    sample.end_s = time.monotonic() - zero_s
    if sample.output_tokens is None and sample.finish == "length":
        sample.output_tokens = request.answer_tokens  # a server without usage in its streams


async def _stream(http: httpx.AsyncClient, request: Ask, sample: Sample, zero_s: float) -> None:
    headers = {"content-type": "application/json"}
    async with http.stream("POST", CHAT, content=request.body, headers=headers) as response:
        if response.is_error:
            sample.error = _refusal(response.status_code, await response.aread())
            return
        async for chunk in _chunks(response):
            if "error" in chunk:
                sample.error = "error_event"
            for choice in chunk.get("choices") or ():
                sample.finish = choice.get("finish_reason") or sample.finish
                if text := (choice.get("delta") or {}).get("content"):
                    sample.piece_s.append(time.monotonic() - zero_s)
                    sample.pieces.append(text)
            if usage := chunk.get("usage"):
                _read_usage(usage, sample)
    if sample.error is None and sample.finish is None:
        sample.error = "incomplete"


async def _chunks(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


def _read_usage(usage: dict[str, Any], sample: Sample) -> None:
    sample.prompt_tokens = usage.get("prompt_tokens")
    sample.output_tokens = usage.get("completion_tokens")
    sample.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if cache := usage.get("kv_cache"):
        sample.kv_bytes, sample.kv_full_bytes = cache.get("bytes"), cache.get("full_bytes")
        sample.keep = cache.get("keep")


def _refusal(status: int, body: bytes) -> str:
    """`http_429 queue_full`: the status, and the code where the body has one."""
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        code = None
    return f"http_{status} {code}" if code else f"http_{status}"
