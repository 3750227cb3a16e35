"""Another client, in a process of its own: what it waits for while the server is attacked.

    python tests/faults/watcher.py URL PID BODY

Asks for `/healthz` and for a small chat (BODY) again and again, and looks at the memory of the
server's process, until its stdin is closed; then prints what was worst, as JSON. A process of its
own, so that it never waits for the attacker's interpreter; no imports but Python's own, so that it
measures from its first moment.
"""

import http.client
import json
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

EVERY_S = 0.02
PROMISED = frozenset((200, 429, 503))  # of a good request; the last two say when to try again


class Watcher:
    """Two clients and a look at the memory, each again and again."""

    def __init__(self, url: str, pid: int, body: bytes) -> None:
        self._address = urlsplit(url).netloc
        self._pid = pid
        self._body = body
        self._over = threading.Event()
        self._seen: dict[str, Any] = {
            "worst_healthz_s": 0.0, "worst_chat_s": 0.0, "num_requests": 0, "wrong": [],
            "peak_rss_bytes": 0,
        }  # fmt: skip

    def watch(self) -> dict[str, Any]:
        """Until stdin is closed."""
        threads = [
            threading.Thread(target=self._again, args=("worst_healthz_s", "GET", "/healthz", b"")),
            threading.Thread(
                target=self._again,
                args=("worst_chat_s", "POST", "/v1/chat/completions", self._body),
            ),
            threading.Thread(target=self._look),
        ]
        for thread in threads:
            thread.start()
        print("watching", flush=True)
        sys.stdin.read()
        self._over.set()
        for thread in threads:
            thread.join()
        return self._seen

    def _again(self, name: str, method: str, path: str, body: bytes) -> None:
        headers = {"content-type": "application/json"}
        while not self._over.wait(EVERY_S):
            began_s = time.monotonic()
            client = http.client.HTTPConnection(self._address, timeout=120)
            try:
                client.request(method, path, body, headers)
                answer = client.getresponse()
                said = answer.read()
                if answer.status not in PROMISED:
                    self._seen["wrong"].append(f"{path}: {answer.status} {said[:200]!r}")
            except OSError as error:
                self._seen["wrong"].append(f"{path}: {type(error).__name__}")
            finally:
                client.close()
            self._seen[name] = max(self._seen[name], time.monotonic() - began_s)
            self._seen["num_requests"] += 1

    def _look(self) -> None:
        while not self._over.wait(EVERY_S):
            peak_bytes = self._seen["peak_rss_bytes"]
            self._seen["peak_rss_bytes"] = max(peak_bytes, resident_bytes(self._pid))


def resident_bytes(pid: int) -> int:
    """What a process holds in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    url, pid, body = sys.argv[1:]
    print(json.dumps(Watcher(url, int(pid), body.encode()).watch()))
