"""Servers by URL: what is sent, what is read, and what happens when they fail."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lookm.errors import ConfigError
from lookm.eval.__main__ import main
from lookm.eval.questions import Job, Question
from lookm.eval.remote import Remote
from lookm.models.detail import Detail
from tests.lookm.eval.stub_backend import question

USAGE = {"prompt_tokens": 9, "kv_cache": {"bytes": 20, "full_bytes": 100}}


class Server(ThreadingHTTPServer):
    """Answers `yes` unless `script` has statuses left; keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.bodies, self.headers, self.usage = [], [], [], USAGE

    @property
    def url(self) -> Any:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": "listed"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.headers.append(dict(self.headers))
        status = self.server.script.pop(0) if self.server.script else 200
        answer = {"choices": [{"message": {"content": "yes"}}], "usage": self.server.usage}
        self.reply(status, answer if status == 200 else {"error": {"message": "not now"}})

    def reply(self, status: Any, content: Any) -> None:
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def remote(server: Any, **options: Any) -> Any:
    return Remote(server.url, pause_s=0.001, **options)


def ask(backend: Any, *policies: Any) -> Any:
    return list(backend.replies(Job(question(f"q{at}"), one) for at, one in enumerate(policies)))


def test_the_policy_goes_into_its_field_and_kept_bytes_come_from_usage(server: Any) -> None:
    (reply,) = ask(remote(server), "look-m@0.2")
    (body,) = server.bodies
    assert body["kv_cache"] == "look-m@0.2"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("listed", 0, 9)
    assert (reply.text, reply.kept_bytes, reply.full_bytes, reply.error) == ("yes", 20, 100, None)


def test_the_policy_may_go_into_the_models_name(server: Any) -> None:
    ask(remote(server, policy_in="model", model="llava"), "look-m@0.2")
    assert server.bodies[0]["model"] == "llava:look-m@0.2"
    assert "kv_cache" not in server.bodies[0]


def test_a_foreign_server_is_told_no_policy_and_tells_no_bytes(server: Any) -> None:
    server.usage = {"prompt_tokens": 9}
    (reply,) = ask(remote(server, policy_in="nowhere"), "full")
    assert "kv_cache" not in server.bodies[0]
    assert reply.kept_bytes is None
    with pytest.raises(ConfigError, match="only be asked at full"):
        ask(remote(server, policy_in="nowhere"), "look-m@0.2")


def test_pictures_stand_in_their_places_and_lose_nothing(server: Any) -> None:
    red, blue = Image.new("RGB", (5, 4), "red"), Image.new("RGB", (3, 3), "blue")
    parts = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    told = [{"role": "user", "content": parts}]
    plain = question()
    asked = Question("q", "t", told, lambda: [red, blue], "yes", plain.mark, 2, 9)
    list(remote(server).replies([Job(asked, "full")]))
    first, text, second = server.bodies[0]["messages"][0]["content"]
    assert text == parts[1]
    for part, picture in ((first, red), (second, blue)):
        kind, data = part["image_url"]["url"].split(",")
        assert kind == "data:image/png;base64"
        sent = Image.open(io.BytesIO(base64.b64decode(data)))
        assert sent.tobytes() == picture.tobytes()


def test_a_busy_server_is_asked_again(server: Any) -> None:
    server.script = [429, 503, 500]
    (reply,) = ask(remote(server), "full")
    assert reply.text == "yes"
    assert len(server.bodies) == 4


def test_a_refused_question_fails_alone(server: Any) -> None:
    server.script = [400]
    first, second = ask(remote(server, concurrency=1), "full", "full")
    assert "HTTP 400: not now" in first.error
    assert second.error is None


@pytest.mark.parametrize("script", [[401], [404], [503] * 5])
def test_a_hopeless_server_ends_the_run(server: Any, script: Any) -> None:
    server.script = script
    with pytest.raises(ConfigError, match=f"HTTP {script[0]}"):
        ask(remote(server), "full")


def test_no_server_and_no_url_are_said(server: Any) -> None:
    with pytest.raises(ConfigError, match="no answer"):
        Remote("http://127.0.0.1:9", tries=2, pause_s=0.001).served()
    with pytest.raises(ConfigError, match="not a URL"):
        Remote("nowhere").served()


def test_every_job_of_many_gets_one_reply(server: Any) -> None:
    replies = ask(remote(server, concurrency=3), *["full"] * 20)
    assert sorted(one.job.question.key for one in replies) == sorted(f"q{at}" for at in range(20))


def test_a_server_that_tells_no_bytes_still_gets_a_report(
    server: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.usage = {}
    asked = ["--url", server.url, "--policies", "full", "--no-kv-cache-field", "--count", "1"]
    assert main([*asked, "--out", str(tmp_path), "--tasks", "note"]) == 0
    assert "| `full` | - |" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_the_command_asks_a_server_and_sends_its_key_but_keeps_it(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    asked = ["--url", server.url, "--policies", "full", "h2o@0.2", "--images", "2", "--count", "1"]
    assert main([*asked, "--out", str(tmp_path), "--tasks", "note"]) == 0
    assert "| `h2o@0.2` | 20% |" in capsys.readouterr().out
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert not any("sk-secret" in path.read_text() for path in tmp_path.iterdir())


def test_a_detail_goes_into_every_image_and_into_the_settings(server: Any) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "?"}, {"type": "image"}]
    two = replace(
        question(),
        messages=[{"role": "user", "content": parts}],
        pictures=lambda: [Image.new("RGB", (8, 8))] * 2,
    )
    asked, plain = remote(server, detail=Detail("low", 64)), remote(server)
    for backend in (asked, plain):
        list(backend.replies([Job(two, "full")]))
    sent = [
        [part["image_url"] for part in body["messages"][0]["content"] if "image_url" in part]
        for body in server.bodies
    ]
    url = sent[1][0]["url"]
    assert sent == [
        [{"url": url, "detail": "low", "max_tokens_per_image": 64}] * 2,
        [{"url": url}] * 2,
    ]
    assert asked.settings == {**plain.settings, "detail": "low-64"}
