"""One API key: what is left to it of its limits, and what its client is told of that.

A request takes one of the requests when it arrives. Its tokens are taken when its prompt is known:
the prompt's and the answer's as long as it may become (where nobody says: `ANSWER_TOKENS`); once it
is over they are counted as they were. Headers are those that OpenAI sends.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from server.api_errors import ApiError
from server.keys.bucket import NEARLY, Bucket, Clock
from server.keys.limits import Limits

ANSWER_TOKENS = 256  # of an answer whose length the request leaves open

Count = Callable[..., None]  # the name of a series, how much, its labels


class Account:
    """A key's name, limits and use. `count` is told of every use."""

    def __init__(
        self,
        name: str,
        digest: bytes,
        limits: Limits,
        count: Count,
        clock: Clock = time.monotonic,
    ) -> None:
        self.name = name
        self.digest = digest
        self.limits = limits
        self._count = count
        self._clock = clock
        self._requests = _resized(None, limits.requests_per_minute, clock)
        self._tokens = _resized(None, limits.tokens_per_minute, clock)

    def change(self, name: str, limits: Limits) -> None:
        """From now on under these limits; what was used stays used."""
        self.name, self.limits = name, limits
        self._requests = _resized(self._requests, limits.requests_per_minute, self._clock)
        self._tokens = _resized(self._tokens, limits.tokens_per_minute, self._clock)

    def arrive(self) -> None:
        """A request is here. Raises `ApiError` (429) where it is one too many, or no token is
        left: nothing of it is read then."""
        self._count("lookm_key_requests_total", key=self.name)
        if self._requests is not None and not self._requests.has(1):
            raise self._refused("requests", self._requests, 1)
        if self._tokens is not None and not self._tokens.has(1):
            raise self._refused("tokens", self._tokens, 1)
        if self._requests is not None:
            self._requests.take(1)

    @contextlib.contextmanager
    def charged(
        self, prompt_tokens: int, answer_tokens: int, generated: Callable[[], int | None]
    ) -> Iterator[None]:
        """Hold tokens for what happens inside, then count what it took: the prompt and what was
        `generated`, nothing where that is None. Raises `ApiError` (429) where they are not there.
        """
        held = prompt_tokens + answer_tokens
        if self._tokens is not None:
            if not self._tokens.has(held):
                raise self._refused("tokens", self._tokens, held)
            self._tokens.take(held)
        try:
            yield
        finally:
            answered = generated()
            prompt_tokens = 0 if answered is None else prompt_tokens
            if self._tokens is not None:
                self._tokens.take(prompt_tokens + (answered or 0) - held)
            self._count("lookm_key_prompt_tokens_total", prompt_tokens, key=self.name)
            self._count("lookm_key_generated_tokens_total", answered or 0, key=self.name)

    def headers(self) -> dict[str, str]:
        """What is left now, as OpenAI says it; only of limits there are."""
        found = {}
        for what, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                left = max(0, math.floor(bucket.left + NEARLY))
                found[f"x-ratelimit-limit-{what}"] = str(bucket.per_minute)
                found[f"x-ratelimit-remaining-{what}"] = str(left)
                found[f"x-ratelimit-reset-{what}"] = duration(bucket.full_in_s())
        return found

    def _refused(self, what: str, bucket: Bucket, wanted: int) -> ApiError:
        """OpenAI's 429: the code, its type (which limit), when to come back."""
        self._count("lookm_key_refused_total", key=self.name)
        used = bucket.per_minute - bucket.left
        facts = f"limit {bucket.per_minute}, used {max(0, math.ceil(used))}, requested {wanted}"
        reached = f"for the key {self.name!r} on {what} per minute: {facts}."
        if math.isinf(bucket.wait_s(wanted)):
            message = f"Request too large {reached} Make it shorter."
            error = ApiError("rate_limit_exceeded", message, type=what)
            error.headers["x-should-retry"] = "false"  # the official clients heed it
            return error
        buckets = ((self._requests, 1), (bucket, wanted))
        wait_s = max(each.wait_s(amount) for each, amount in buckets if each is not None)
        message = f"Rate limit reached {reached} Please try again in {duration(wait_s)}."
        error = ApiError("rate_limit_exceeded", message, type=what)
        error.headers["retry-after"] = str(max(1, math.ceil(wait_s)))
        error.headers["retry-after-ms"] = str(max(1, math.ceil(wait_s * 1000)))
        return error


def duration(seconds: float) -> str:
    """As Go, and so OpenAI, writes it, rounded up: `17ms`, `8.64s`, `6m0s`.

    >>> duration(359.9999)
    '6m0s'
    """
    ms = math.ceil(seconds * 1000 - 1e-6)
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    minutes, ms = divmod(ms, 60_000)
    shown = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{minutes}m{shown}" if minutes else shown


def _resized(bucket: Bucket | None, per_minute: int | None, clock: Clock) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, clock)
    bucket.resize(per_minute)
    return bucket
