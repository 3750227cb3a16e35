"""Prompts that end workers: one that was alone on the worker twice when it died is refused.

Alone, because of several nobody knows which it was. Only deaths that a prompt can cause count: not
that somebody killed or stopped the process. A prompt that is answered is innocent. Kept is a digest
of what is computed, keyed with a secret of this process; no content, and of a bounded number only.
"""

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

import msgspec

from lookm.types import Request
from server.worker.worker_errors import Cause, PromptRefusedError

BLAMING: frozenset[Cause] = frozenset(("failed", "crashed", "out_of_memory", "hung"))
MAX_DEATHS = 2
REFUSED_S = 3600.0
MAX_SUSPECTS = 1024


@dataclass(slots=True)
class _Record:
    num_deaths: int
    since_s: float


class Suspects:
    """Who was alone when a worker died, and how often."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = secrets.token_bytes(16)
        self._clock = clock
        self._records: OrderedDict[bytes, _Record] = OrderedDict()

    def digest(self, request: Request) -> bytes:
        """Of its prompt, its images, its policy and its grammar: what a fault may lie in."""
        digest = hashlib.blake2b(key=self._key, digest_size=16)
        content = (request.prompt_ids, [image.digest for image in request.images])
        rules = (request.policy, request.sampling.structure)
        digest.update(msgspec.msgpack.encode((content, rules)))
        return digest.digest()

    def check(self, digest: bytes) -> None:
        """Raises `PromptRefusedError` for one that is not to be tried again."""
        record = self._records.get(digest)
        if record is None or record.num_deaths < MAX_DEATHS:
            return
        left_s = record.since_s + REFUSED_S - self._clock()
        if left_s <= 0:
            del self._records[digest]
            return
        raise PromptRefusedError(
            f"The engine died {record.num_deaths} times while it worked on this prompt alone. It "
            f"is refused for {max(1, round(left_s / 60))} min: change it, or tell the operator."
        )

    def blame(self, digests: Collection[bytes], cause: Cause) -> None:
        """A worker died while it held these."""
        if len(digests) != 1 or cause not in BLAMING:
            return
        (digest,) = digests
        record = self._records.pop(digest, None)
        now_s = self._clock()
        if record is None or record.since_s + REFUSED_S <= now_s:
            record = _Record(0, now_s)
        self._records[digest] = _Record(record.num_deaths + 1, now_s)
        if len(self._records) > MAX_SUSPECTS:
            self._records.popitem(last=False)

    def acquit(self, digest: bytes | None) -> None:
        """It was answered."""
        if self._records and digest is not None:
            self._records.pop(digest, None)
