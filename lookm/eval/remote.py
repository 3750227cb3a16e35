"""A back end: any OpenAI-compatible server by its URL.

A policy goes into the request as `kv_cache`, into the model's name (`name:look-m@0.2`), or, for a
server that knows no policies, nowhere: then only `full` may be asked. Kept bytes are what the
server reports in `usage.kv_cache`. Knows HTTP by the standard library and images as data URLs.
Knows nothing of engines, suites or scores.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lookm.errors import ConfigError, RequestError
from lookm.eval.png_url import png_url
from lookm.eval.questions import FULL, Job, Question, Reply
from lookm.models.detail import Detail
from lookm.models.preprocessing import PLAIN
from lookm.policy import most, parse
from lookm.positions import Positions, decode

Json = dict[str, Any]
PolicyIn = Literal["field", "model", "nowhere"]

#: Answered by asking again: too many requests, timeouts, and servers that are starting or dying.
_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
#: The whole run is wrong, not one question: the key, the address or the model.
_HOPELESS = frozenset({401, 403, 404, 405})


@dataclass(frozen=True, slots=True)
class Remote:
    """`url` is what comes before `/v1`. Greedy; `concurrency` requests at a time, each tried
    `tries` times; `detail` goes into every image's `image_url`. Raises `ConfigError` where the
    server cannot be used at all."""

    url: str
    model: str | None = None
    policy_in: PolicyIn = "field"
    concurrency: int = 4
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 600.0
    tries: int = 5
    pause_s: float = 1.0
    detail: Detail = PLAIN

    @property
    def settings(self) -> Mapping[str, str]:
        """The address and the model."""
        detail = {"detail": self.detail.name} if self.detail.name else {}
        return {"model": self.served(), "url": self.url, **detail}

    def served(self) -> str:
        """The model to ask for: the one given, or the first that the server lists."""
        if self.model is not None:
            return self.model
        listed = self._send("/v1/models", None)
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ConfigError(f"{self.url} lists no model: pass --model") from None

    def replies(self, jobs: Iterable[Job]) -> Iterator[Reply]:
        """In the order in which answers come."""
        model = self.served()
        pool = ThreadPoolExecutor(self.concurrency)
        open_jobs: set[Future[Reply]] = set()
        try:
            for job in jobs:
                open_jobs.add(pool.submit(self._ask, model, job))
                if len(open_jobs) >= self.concurrency:
                    done, open_jobs = wait(open_jobs, return_when=FIRST_COMPLETED)
                    yield from (one.result() for one in done)
            while open_jobs:
                done, open_jobs = wait(open_jobs, return_when=FIRST_COMPLETED)
                yield from (one.result() for one in done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def body(self, model: str, job: Job) -> Json:
        """The request of one job."""
        body: Json = {
            "model": model,
            "messages": _messages(job.question, self.detail),
            "max_tokens": job.question.max_tokens,
            "temperature": 0,
        }
        if self.policy_in == "field":
            body["kv_cache"] = job.policy
        elif self.policy_in == "model":
            body["model"] = f"{model}:{job.policy}"
        elif job.policy != FULL:
            raise ConfigError(f"a server that takes no policy can only be asked at {FULL}")
        return body

    def kept(self, job: Job) -> Positions | None:
        """None where the server does not tell, or refuses to."""
        if self.policy_in == "nowhere":
            return None
        body = self.body(self.served(), job) | {"max_tokens": 1}
        policy = {} if self.policy_in == "model" else asdict(most(parse(job.policy)))
        said = {name: value for name, value in policy.items() if value is not None}
        body["kv_cache"] = {**said, "positions": True}
        try:
            return decode(self._send("/v1/chat/completions", body))
        except (_RefusedError, RequestError):
            return None

    def _ask(self, model: str, job: Job) -> Reply:
        try:
            answer = self._send("/v1/chat/completions", self.body(model, job))
        except _RefusedError as error:
            return Reply(job, "", error=str(error))
        try:
            text = answer["choices"][0]["message"]["content"] or ""
            cache = (answer.get("usage") or {}).get("kv_cache") or {}
            return Reply(job, text, cache.get("bytes"), cache.get("full_bytes"))
        except (KeyError, IndexError, TypeError, AttributeError):
            return Reply(job, "", error="the answer is not an OpenAI chat completion")

    def _send(self, path: str, body: Json | None) -> Json:
        """The server's JSON. Raises `_RefusedError` for one request, `ConfigError` for all."""
        for left in reversed(range(self.tries)):
            pause_s = self.pause_s * 2 ** (self.tries - 1 - left)
            try:
                with urllib.request.urlopen(
                    self._request(path, body), timeout=self.timeout_s
                ) as got:
                    found: Json = json.loads(got.read())
                    return found
            except urllib.error.HTTPError as error:
                message = f"HTTP {error.code}: {_message(error)}"
                if error.code in _HOPELESS:
                    raise ConfigError(f"{self.url}: {message}") from None
                if error.code not in _TRY_AGAIN:
                    raise _RefusedError(message) from None
                pause_s = _asked_pause_s(error) or pause_s
            except (OSError, http.client.HTTPException, ValueError) as error:
                message = f"no answer ({error})"
            if left:
                time.sleep(min(pause_s, 30.0))
        raise ConfigError(f"{self.url}: {message}, {self.tries} times; run again to go on")

    def _request(self, path: str, body: Json | None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            return urllib.request.Request(self.url.rstrip("/") + path, data, headers)
        except ValueError:
            raise ConfigError(f"{self.url!r} is not a URL such as http://127.0.0.1:8000") from None


class _RefusedError(Exception):
    """The server does not answer this question; it may answer others."""


def _messages(question: Question, detail: Detail) -> list[Json]:
    """With the pictures in their places, as PNG: nothing is lost on the way."""
    pictures = iter(question.pictures())
    asked: Json = {} if detail.level == "auto" else {"detail": detail.level}
    if detail.max_tokens is not None:
        asked["max_tokens_per_image"] = detail.max_tokens
    messages = []
    for message in question.messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                {"type": "image_url", "image_url": {"url": png_url(next(pictures)), **asked}}
                if part["type"] == "image"
                else part
                for part in content
            ]
        messages.append({**message, "content": content})
    return messages


def _message(error: urllib.error.HTTPError) -> str:
    """The `message` of OpenAI's error envelope, or what there is."""
    raw = error.read(10_000)
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return raw[:200].decode(errors="replace") or error.reason


def _asked_pause_s(error: urllib.error.HTTPError) -> float | None:
    wait = error.headers.get("Retry-After", "")
    return float(wait) if wait.isdigit() else None
