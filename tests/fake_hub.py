"""A hub of models on this machine: enough of the API for huggingface_hub to download from it.

Files of a folder are a repository at one commit. It can be made to cut a download, to refuse, and
counts what it has sent.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """`refuse`: a status for everything, with the hub's `X-Error-Code`. `cut`: after how many bytes
    of a file of weights a connection ends, once."""

    daemon_threads = True

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.folder = name, folder
        self.refuse: tuple[int, str] | None = None
        self.cut: int | None = None
        self.sent_bytes: dict[str, int] = {}
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        """What `HF_ENDPOINT` is set to."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no news."""


@contextlib.contextmanager
def fake_hub(name: str, folder: Path) -> Iterator[FakeHub]:
    """A hub that serves `folder` as the repository `name`."""
    with FakeHub(name, folder) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.tokens.add(self.headers.get("authorization"))
        if hub.refuse is not None:
            status, code = hub.refuse
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "no"})
        elif path.startswith(f"/api/models/{hub.name}/tree/"):
            self._json([self._entry(file) for file in self._files()])
        elif path.startswith(f"/api/models/{hub.name}"):
            siblings = [{"rfilename": file.name} for file in self._files()]
            self._json({"id": hub.name, "sha": COMMIT, "siblings": siblings, "tags": []})
        elif path.startswith(f"/{hub.name}/resolve/"):
            self._file(hub.folder / path.rpartition("/")[2])
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _files(self) -> list[Path]:
        return sorted(self.server.folder.iterdir())

    def _entry(self, file: Path) -> dict[str, Any]:
        data = file.read_bytes()
        entry = {"type": "file", "path": file.name, "size": len(data), "oid": _digest(data)}
        if file.suffix == ".safetensors":
            oid = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
        return entry

    def _file(self, file: Path) -> None:
        if not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        data = file.read_bytes()
        is_large = file.suffix == ".safetensors"
        digest = hashlib.sha256(data).hexdigest() if is_large else _digest(data)
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        wanted = self.headers.get("range")
        if wanted is None:
            self._send(200, data, headers, file.name)
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        end = min(int(last) + 1 if last else len(data), len(data))
        part = data[int(first) : end]
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
        self._send(206, part, headers, file.name)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], name: str = "") -> None:
        hub = self.server
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if hub.cut is not None and name.endswith(".safetensors") and len(body) > hub.cut:
            body, hub.cut = body[: hub.cut], None
            self.close_connection = True
        hub.sent_bytes[name] = hub.sent_bytes.get(name, 0) + len(body)
        self.wfile.write(body)


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
