"""A stand-in for any OpenAI-compatible server: a few lines that answer as a test wants."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


class Call:
    """One chat request that is being answered."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: Body) -> None:
        self._handler = handler
        self.body = body

    def status(self, code: int, body: Any = None) -> None:
        self._handler.send_response(code)
        self._handler.end_headers()
        self._handler.wfile.write(json.dumps(body).encode())

    def begin(self) -> None:
        self._handler.send_response(200)
        self._handler.send_header("content-type", "text/event-stream")
        self._handler.end_headers()

    def send(self, data: str) -> None:
        self._handler.wfile.write(f"data: {data}\n\n".encode())
        self._handler.wfile.flush()

    def piece(self, text: str, finish: str | None = None) -> None:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        self.send(json.dumps({"choices": [choice]}))

    def usage(self, **fields: Any) -> None:
        self.send(json.dumps({"choices": [], "usage": fields}))

    def vanish(self) -> None:
        """Close the connection in the middle of a message."""
        self._handler.wfile.write(b"data: {")
        self._handler.wfile.flush()
        self._handler.connection.shutdown(2)

    def whole(self, pieces: int, gap_s: float = 0.0, **cache: Any) -> None:
        """A good answer that ends by its length, with its usage; `cache` is in that."""
        self.begin()
        for number in range(pieces):
            time.sleep(gap_s)
            self.piece("word ", "length" if number == pieces - 1 else None)
        said = {"kv_cache": cache} if cache else {}
        self.usage(prompt_tokens=7, completion_tokens=self.body["max_tokens"], **said)
        self.send("[DONE]")


@contextlib.contextmanager
def standing_in(answer: Callable[[Call], None], metrics: str | None = None) -> Iterator[str]:
    """The URL of a server in a thread; `answer` is called for every chat request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with contextlib.suppress(OSError):
                answer(Call(self, body))

        def do_GET(self) -> None:
            bodies = {"/v1/models": json.dumps({"data": [{"id": "stand-in"}]}), "/metrics": metrics}
            text = bodies.get(self.path)
            self.send_response(404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
