"""Log lines as JSON: one object a line, the fields of the text, in every process."""

import json
import logging
import os
import subprocess
import sys
import threading

import httpx
import pytest

from server import logs
from server.settings import Settings
from tests.server.process import READY
from tests.server.requests import CHAT, chat, image, says, serving

pytestmark = pytest.mark.anyio

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def test_a_record_is_one_line_with_its_fields_and_its_traceback() -> None:
    try:
        raise ValueError("of\ntwo lines")
    except ValueError:
        record = logging.LogRecord("lookm", 20, "f", 1, "%s is\nhere", ("ü",), sys.exc_info())
    record.fields = logs.fields(status=200, code=None)["fields"]
    line = logs.JsonLines().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert told["message"] == "ü is\nhere"
    assert (told["level"], told["logger"], told["status"]) == ("info", "lookm", 200)
    assert "code" not in told
    assert told["traceback"].startswith("Traceback")
    assert told["time"].endswith("+00:00")


async def test_what_the_text_says_json_says_by_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="lookm.access")
    headers = {"x-request-id": "r-1", "traceparent": PARENT}
    async with serving(Settings(model="fake"), says) as (client, _, _app):
        sent = chat("secret-words", image(), kv_cache="look-m@0.5")
        answer = await client.post(CHAT, json=sent, headers=headers)
        await client.post(CHAT, json=chat(top_p=7), headers={"traceparent": "00-0-0-01"})
    whole, refused = (json.loads(logs.JsonLines().format(r)) for r in caplog.records)
    text = caplog.records[0].getMessage()
    head = f"r-1 POST {CHAT} 200 {whole['ms']}ms "
    facts = ("id", "method", "prompt", "image_tokens", "kept", "generated", "finish", "trace")
    assert text == head + " ".join(f"{name}={whole[name]}" for name in facts)
    assert (whole["request_id"], whole["http_method"], whole["route"]) == ("r-1", "POST", CHAT)
    assert (whole["status"], whole["trace"], whole["generated"]) == (200, TRACE, 3)
    assert whole["id"] == answer.json()["id"]
    assert (refused["status"], refused["code"]) == (400, "invalid_value")
    assert "trace" not in refused
    assert "secret" not in json.dumps([whole, refused])
    assert "traceresponse" not in answer.headers, "nobody writes a trace"


def test_every_line_of_both_processes_is_json_with_the_answers_id() -> None:
    command = (sys.executable, "-m", "server", "serve", "--port", "0", "--model", "fake",
               "--log-format", "json", "--log-level", "debug")  # fmt: skip
    with subprocess.Popen(
        command, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        lines: list[str] = []
        reading = threading.Thread(target=lambda: lines.extend(server.stderr))
        reading.start()
        url = next(found[1] for line in server.stdout if (found := READY.search(line)))
        answer = httpx.post(url + CHAT, json=chat(), timeout=60)
        server.terminate()
        server.stdout.read()
        reading.join(30)
    told = [json.loads(line) for line in lines]
    named = [each for each in told if each.get("id") == answer.json()["id"]]
    assert {each["logger"] for each in named} == {"lookm.access", "lookm.worker"}
    assert server.returncode == 0
