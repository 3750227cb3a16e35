"""What an attack costs the others: measured by `watcher`, held against what is promised.

Every attack of this folder runs inside `watched` (or fills its `Figures` itself, where its server
does not survive it), and its figures are a row of `make faults`.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.faults.watcher import resident_bytes
from tests.server.process import ServerProcess
from tests.server.raw_http import RawClient
from tests.server.requests import CHAT, chat, image

# Promised are 0.25 s and 5 s on a machine of one's own: a test also passes beside other work.
MAX_HEALTHZ_S, MAX_CHAT_S = 1.0, 10.0
MAX_RSS_BYTES = 2 * 10**9
SETTLED = 1.2
SETTLE_S = 60.0

ROWS: list[dict[str, Any]] = []  # of this run, in the order of the tests; see `conftest`


@dataclass
class Figures:
    """What happened to the others meanwhile. None: it is not the attack's point."""

    took_s: float = 0.0
    worst_healthz_s: float | None = None
    worst_chat_s: float | None = None
    rss_before_bytes: int | None = None
    peak_rss_bytes: int | None = None
    rss_after_bytes: int | None = None
    pages_left_bytes: int | None = None
    num_requests: int = 0
    wrong: list[str] = field(default_factory=list)
    status: int | None = None  # the server's, where the attack ended it
    statuses: dict[int, int] = field(default_factory=dict)

    def check(self, client: RawClient, *, stream: bool) -> None:
        """An ending is an answer's, or an error's in its envelope; a stream's has `[DONE]`."""
        self.num_requests += 1
        begun = stream and client.status == 200
        well = client.ended_well if begun else client.status == 200 or client.failed
        if not well:
            self.wrong.append(f"{client.status} {client.received[-120:]!r}")

    def answered(self, answer: httpx.Response) -> int:
        """An answer to an attack: an error in its envelope, and of the server's errors only 503."""
        self.num_requests += 1
        self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
        broken = answer.status_code >= 500 and answer.status_code != 503
        if broken or (answer.status_code >= 400 and b'"error"' not in answer.content[:200]):
            self.wrong.append(f"{answer.status_code} {answer.content[:200]!r}")
        return answer.status_code

    def record(self, attack: str) -> None:
        """A row of the run."""
        ROWS.append({"attack": attack, **asdict(self), "wrong": len(self.wrong)})

    def hold(self) -> None:
        """Held against what is promised."""
        assert self.wrong == []
        assert (self.worst_healthz_s or 0) < MAX_HEALTHZ_S
        assert (self.worst_chat_s or 0) < MAX_CHAT_S
        assert (self.peak_rss_bytes or 0) < MAX_RSS_BYTES
        assert (self.rss_after_bytes or 0) <= SETTLED * (self.rss_before_bytes or 0)
        assert not self.pages_left_bytes


@contextlib.contextmanager
def watched(
    server: ServerProcess, attack: str, *, model: str = "llava-demo", lasts: bool = True
) -> Iterator[Figures]:
    """Measure what others see while the block attacks, record it, and hold it to the promise.

    Where the worker does not last, others' small chats wait for the next one.
    """
    pid = server.process.pid
    figures = Figures(rss_before_bytes=resident_bytes(pid))
    small = chat("hi", image(), model=model, max_tokens=4)
    with _watcher(server.url, pid, small) as watcher:
        began_s = time.monotonic()
        yield figures
        figures.took_s = time.monotonic() - began_s
        seen = json.loads(watcher.communicate()[0])
    figures.num_requests += seen.pop("num_requests")
    figures.wrong += seen.pop("wrong")
    for name, value in seen.items():
        setattr(figures, name, value)
    figures.rss_after_bytes = _settled_bytes(pid, figures.rss_before_bytes or 0)
    figures.pages_left_bytes = _pages_left(server)
    if not lasts:
        figures.worst_chat_s = None
    figures.record(attack)
    figures.hold()


def ask(server: ServerProcess, body: Any, path: str = CHAT) -> httpx.Response:
    """An attack's request, with time enough."""
    return httpx.post(server.url + path, json=body, timeout=300)


@contextlib.contextmanager
def _watcher(url: str, pid: int, body: Any) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(Path(__file__).with_name("watcher.py"))]
    process = subprocess.Popen(
        [*command, url, str(pid), json.dumps(body)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def _settled_bytes(pid: int, before_bytes: int) -> int:
    """What it holds once that is near what it held, or after a minute."""
    until_s = time.monotonic() + SETTLE_S
    while (now_bytes := resident_bytes(pid)) > SETTLED * before_bytes:
        if time.monotonic() > until_s:
            break
        time.sleep(0.2)
    return now_bytes


def _pages_left(server: ServerProcess) -> int:
    """What requests still hold of the pool, once those that were left have been aborted."""
    until_s = time.monotonic() + 10
    while left_bytes := int(server.series("lookm_kv_cache_used_bytes")):
        if time.monotonic() > until_s:
            break
        time.sleep(0.1)
    return left_bytes
