"""Traces, in memory and at a collector: a span a request, its stages in it, nothing private."""

import http.server
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from server.app import create_app, real_parts
from server.settings import Settings
from server.traces import Traces
from tests.server.process import serving_process
from tests.server.requests import CHAT, chat, data_url, image, in_process, png

pytestmark = [pytest.mark.extras, pytest.mark.anyio]

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = (f"00-{TRACE}-{PARENT}-{flags}" for flags in ("01", "00"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def traced(**settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    """A client of an app with the fake engine, and what reads its spans."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    app = create_app(Settings(model="fake:step_s=0.002", threads=1, **settings), real_parts, traces)

    def spans() -> list[Any]:
        traces.flush()
        found = list(exporter.get_finished_spans())
        exporter.clear()
        return found

    async with app.router.lifespan_context(app), in_process(app) as client:
        await app.state.services.booting
        yield client, spans


def tree(spans: list[Any]) -> tuple[Any, dict[str, list[Any]]]:
    """The request's span, and the others by name."""
    root = max(spans, key=lambda span: span.end_time - span.start_time)
    named: dict[str, list[Any]] = {}
    for span in spans:
        if span is not root:
            named.setdefault(span.name, []).append(span)
    return root, named


async def test_a_request_is_a_span_with_its_stages_inside() -> None:
    async with traced() as (client, spans):
        headers = {"traceparent": SAMPLED, "x-request-id": "r-1"}
        for stream, colour in ((False, "red"), (True, "blue")):
            picture = image(data_url(png(colour)))
            body = chat(picture, "secret-words", kv_cache="look-m@0.5", max_tokens=20)
            answer = await client.post(CHAT, json=body | {"stream": stream}, headers=headers)
            root, named = tree(spans())
            assert root.name == f"POST {CHAT}"
            assert f"{root.context.trace_id:032x}" == TRACE
            assert f"{root.parent.span_id:016x}" == PARENT
            assert answer.headers["traceresponse"] == f"00-{TRACE}-{root.context.span_id:016x}-01"
            assert {"media", "preprocess", "queue", "prefill", "decode"} <= named.keys()
            (media,), (preprocess, *_) = named["media"], named["preprocess"]
            assert preprocess.parent.span_id == media.context.span_id
            for span in [span for of in named.values() for span in of]:
                assert span.context.trace_id == root.context.trace_id
                assert span.start_time <= span.end_time
                assert root.start_time <= span.start_time, span.name
                assert span.end_time <= root.end_time, span.name
                if span.name != "preprocess":
                    assert span.parent.span_id == root.context.span_id
            (decode,) = named["decode"]
            assert decode.end_time - decode.start_time >= 20 * 2e6
            told = dict(root.attributes)
            assert told["lookm.request_id"] == "r-1"
            assert told["http.response.status_code"] == 200
            assert told["gen_ai.usage.output_tokens"] == 20
            assert told["lookm.kv_cache.method"] == "look-m"
            assert told["lookm.kv_cache.kept_tokens"] < told["gen_ai.usage.input_tokens"]
            assert root.resource.attributes["service.name"] == "lookm-server"
            assert root.status.is_ok or root.status.status_code.name == "UNSET"


async def test_each_answer_of_several_has_its_own_stages() -> None:
    async with traced() as (client, spans):
        await client.post(CHAT, json=chat(n=3))
        _, named = tree(spans())
        assert sorted(span.attributes["lookm.choice"] for span in named["decode"]) == [0, 1, 2]
        assert len(named["media"]) == 1


async def test_failures_are_marked_and_probes_have_no_span() -> None:
    async with traced() as (client, spans):
        await client.get("/healthz")
        await client.get("/metrics")
        assert spans() == []
        await client.post(CHAT, json=chat(top_p=7))
        (bad,) = spans()
        assert bad.attributes["error.type"] == "invalid_value"
        assert bad.status.status_code.name == "UNSET", "the client's fault is none of ours"
        await client.post(CHAT, json=chat("fake:error"))
        root, _ = tree(spans())
        assert root.status.status_code.name == "ERROR", root.attributes


async def test_a_client_that_is_not_sampled_is_not_traced_and_nonsense_is_ignored() -> None:
    async with traced() as (client, spans):
        answer = await client.post(CHAT, json=chat(), headers={"traceparent": UNSAMPLED})
        assert spans() == []
        assert answer.headers["traceresponse"].endswith("-00")
        await client.post(CHAT, json=chat(), headers={"traceparent": "00-xyz-1-01"})
        root, _ = tree(spans())
        assert root.parent is None


async def test_nothing_private_is_in_a_span() -> None:
    async with traced(api_keys="secret-key") as (client, spans):
        sent = chat("secret-words", image(), user="secret-user")
        headers = {"authorization": "Bearer secret-key", "x-secret": "secret"}
        await client.post(CHAT + "?secret=1", json=sent, headers=headers)
        await client.post("/secret-route", headers=headers)
        found = spans()
        assert len(found) > 4
        written = json.dumps([json.loads(span.to_json()) for span in found])
        assert "secret" not in written
        assert "base64" not in written


class Collector(http.server.BaseHTTPRequestHandler):
    """An OTLP collector that keeps what it gets in memory."""

    got: list[bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/v1/traces":
            self.got.append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    got: list[bytes] = []
    handler = type("Here", (Collector,), {"got": got})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", got
        server.shutdown()
        thread.join()


def test_a_server_sends_its_spans_before_it_ends(collector: tuple[str, list[bytes]]) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    url, got = collector
    with serving_process("--model", "fake", "--otlp-endpoint", url) as server:
        httpx.post(server.url + CHAT, json=chat(), headers={"traceparent": SAMPLED}, timeout=60)
    spans = [
        span
        for body in got
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert {"queue", "prefill", "decode", "media"} <= {span.name for span in spans}


def test_a_collector_that_is_not_there_costs_nobody_an_answer() -> None:
    with serving_process("--model", "fake", "--otlp-endpoint", "http://127.0.0.1:9") as server:
        assert httpx.post(server.url + CHAT, json=chat(), timeout=60).status_code == 200
