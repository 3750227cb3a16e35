"""OpenTelemetry traces (`--otlp-endpoint`, the extra `[otel]`): one span a request.

Its children are the stages that `server.stages` hears of. The parent is the client's, where it
sends a W3C `traceparent`; the usual `OTEL_*` variables say what is sampled, which headers go along
and what the service is called. A span holds what the log line holds: no prompts, images or keys.
opentelemetry is imported when traces are opened, and nowhere else.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from server.api_errors import CODES
from server.stages import Stage
from server.version import version

NEEDS = "traces need opentelemetry: pip install 'lookm-server[otel]'"
CLOSE_MS = 2000  # for what is left to be sent when the server stops

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")

# What the log calls it, and what the conventions for spans do.
ATTRIBUTES = {
    "request_id": "lookm.request_id",
    "id": "gen_ai.response.id",
    "http_method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "code": "error.type",
    "key": "lookm.key",
    "prompt": "gen_ai.usage.input_tokens",
    "generated": "gen_ai.usage.output_tokens",
    "finish": "lookm.finish_reason",
    "method": "lookm.kv_cache.method",
    "image_tokens": "lookm.image_tokens",
    "kept": "lookm.kv_cache.kept_tokens",
}


def trace_id(traceparent: str) -> str | None:
    """The trace that a client's header names, if it is one."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or not found[1].strip("0") or not found[2].strip("0"):
        return None
    return found[1]


def check(endpoint: str) -> None:
    """Raises `ValueError` where traces are asked for and cannot be made."""
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", endpoint):
        raise ValueError("--otlp-endpoint: give a URL such as http://127.0.0.1:4318")
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk  # noqa: F401
    except ImportError:
        raise ValueError(f"--otlp-endpoint: {NEEDS}") from None


class Traces:
    """Spans of all requests, on their way to `exporter` (an opentelemetry `SpanExporter`)."""

    def __init__(self, exporter: Any, replica: str | None = None) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        name = os.environ.get("OTEL_SERVICE_NAME", "lookm-server")
        about = {SERVICE_NAME: name, "service.version": version()}
        facts = Resource.create(about | ({"service.instance.id": replica} if replica else {}))
        self._provider = TracerProvider(resource=facts)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("lookm.server", version())

    @classmethod
    def to(cls, endpoint: str, replica: str | None = None) -> Self:
        """To a collector's OTLP over HTTP, `http://127.0.0.1:4318`; a path is taken as it is."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        has_path = "/" in endpoint.partition("://")[2].rstrip("/")
        url = endpoint if has_path else f"{endpoint.rstrip('/')}/v1/traces"
        return cls(OTLPSpanExporter(url), replica)

    def begin(self, headers: Mapping[str, str], began_s: float) -> "RequestTrace":
        """The span of a request that arrived at `began_s`."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        parent = TraceContextTextMapPropagator().extract(carrier)
        day_ns = time.time_ns() - time.perf_counter_ns()
        start_ns = day_ns + round(began_s * 1e9)
        span = self._tracer.start_span("request", parent, kind=SpanKind.SERVER, start_time=start_ns)
        return RequestTrace(self._tracer, span, day_ns)

    def flush(self) -> None:
        """Send what has ended. Takes a moment."""
        self._provider.force_flush(CLOSE_MS)

    def close(self) -> None:
        """Send what is left, in bounded time."""
        self.flush()
        self._provider.shutdown()


class RequestTrace:
    """The span of one request that is under way.

    `day_ns` makes `perf_counter`'s time one of day: the same for all of its spans, or one of them
    could end before it begins.
    """

    def __init__(self, tracer: Any, span: Any, day_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        self._day_ns = day_ns

    @property
    def header(self) -> str:
        """As `traceresponse`: our span, for a client that wants to find it."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def end(self, facts: Mapping[str, Any], stages: Sequence[Stage]) -> None:
        """The request is over: `facts` are its log line's."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        self._span.update_name(f"{facts['http_method']} {facts['route']}")
        for name, attribute in ATTRIBUTES.items():
            if facts.get(name) is not None:
                self._span.set_attribute(attribute, facts[name])
        code = facts.get("code")
        if facts["status"] >= 500 or (code and CODES[code].status >= 500):
            self._span.set_status(Status(StatusCode.ERROR, code))
        inside = set_span_in_context(self._span)
        media = next((stage for stage in stages if stage.name == "media"), None)
        loading = inside if media is None else set_span_in_context(self._write(media, inside))
        for stage in stages:
            if stage is not media:
                self._write(stage, loading if stage.name == "preprocess" else inside)
        self._span.end(self._at_ns(time.perf_counter()))

    def _write(self, stage: Stage, context: Any) -> Any:
        span = self._tracer.start_span(stage.name, context, start_time=self._at_ns(stage.began_s))
        if stage.choice is not None:
            span.set_attribute("lookm.choice", stage.choice)
        span.end(self._at_ns(stage.ended_s))
        return span

    def _at_ns(self, counter_s: float) -> int:
        return self._day_ns + round(counter_s * 1e9)
