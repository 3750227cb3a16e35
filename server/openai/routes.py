"""OpenAI's routes. Each one reads its body, asks the engine, and writes an answer or a stream.

Knows which parts a request passes through, in which order. Everything else is in those parts.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from lookm.types import Request as EngineRequest
from lookm.types import TokenEvent
from server.api_errors import ApiError, to_api_error
from server.health import Live
from server.openai import openapi
from server.openai.openapi import STREAMED, ErrorEnvelope, described
from server.openai.request import policies
from server.openai.request.body import read
from server.openai.request.sampling import num_logprobs
from server.openai.request.schemas import ChatRequest, CompletionRequest, Generation
from server.openai.response.choices import Choices, Events, Told, each_choice, merged, opening
from server.openai.response.schemas import (
    ChatCompletion,
    Model,
    ModelList,
    TextCompletion,
    kept_ratio,
)
from server.openai.response.stream import (
    EventStream,
    collect,
    metered,
    server_sent,
    unless_gone,
    within,
)
from server.openai.response.writers import ChatWriter, Letterhead, TextWriter, Writer
from server.openai.tools.checks import call_reader
from server.request_metrics import Meter
from server.services import Services

EXAMPLE_MODEL = "llava-demo"

Prepare = Callable[[], Coroutine[Any, Any, EngineRequest]]

router = APIRouter(prefix="/v1", tags=["openai"], responses={"default": {"model": ErrorEnvelope}})


@router.post(
    "/chat/completions",
    openapi_extra=described(ChatRequest, openapi.chat_example(EXAMPLE_MODEL)),
    responses={200: {"model": ChatCompletion, "content": STREAMED}},
)
async def chat_completions(request: Request, live: Live) -> Response:
    """Answer a conversation with images, whole or as a stream."""
    body = await read(ChatRequest, request)
    answering = Answering(live, request, body, f"chatcmpl-{uuid.uuid4().hex}")
    translator = live.translator
    prepare = partial(translator.chat, body, answering.id)
    new_reader = partial(call_reader, body, translator.tool_support)
    return await answering.respond(prepare, ChatWriter(answering.paper, new_reader))


@router.post(
    "/completions",
    openapi_extra=described(CompletionRequest, openapi.text_example(EXAMPLE_MODEL)),
    responses={200: {"model": TextCompletion, "content": STREAMED}},
)
async def completions(request: Request, live: Live) -> Response:
    """Continue a text, without a chat template."""
    body = await read(CompletionRequest, request)
    answering = Answering(live, request, body, f"cmpl-{uuid.uuid4().hex}")
    prepare = partial(live.translator.completion, body, answering.id)
    return await answering.respond(prepare, TextWriter(answering.paper))


@router.get("/models")
async def models(live: Live) -> ModelList:
    """The model, and the model with each cache policy."""
    found = [_model(live, name) for name in policies.variants(live.model)]
    return ModelList(object="list", data=found)


@router.get("/models/{model:path}")
async def model(model: str, live: Live) -> Model:
    """One model; any valid policy may follow its name."""
    try:
        policies.split_model(model, live.model)
    except ApiError as error:
        raise ApiError("model_not_found", error.message, param="model") from None
    return _model(live, model)


@dataclass(frozen=True, slots=True)
class Answering:
    """One request on its way from a parsed body to a response."""

    live: Services
    request: Request
    body: Generation
    id: str
    num_generated: dict[int, int] = field(default_factory=dict)

    @property
    def num_choices(self) -> int:
        """How many answers were asked for."""
        return self.body.n or 1

    @property
    def paper(self) -> Letterhead:
        """What every answer and chunk repeats."""
        options = self.body.stream_options
        wants_usage = bool(options and options.include_usage)
        return Letterhead(
            id=self.id,
            model=self.body.model,
            fingerprint=self.live.fingerprint,
            include_usage=wants_usage,
            logprobs=num_logprobs(self.body) is not None,
        )

    async def respond(self, prepare: Prepare, writer: Writer) -> Response:
        """The response. A client that leaves ends the work, before and after the first token."""
        events = self._events(prepare)
        work = self._stream(events, writer) if self.body.stream else self._whole(events, writer)
        return await unless_gone(self.request.receive, work)

    async def _whole(self, events: Choices, writer: Writer) -> Response:
        collected = await collect(events, self.num_choices)
        headers = self._headers(collected[0].last)
        return Response(writer.whole(collected).to_json(), 200, headers, "application/json")

    async def _stream(self, events: Choices, writer: Writer) -> Response:
        """Headers wait for the first events: what is refused until then has a proper status."""
        first = await opening(events, self.num_choices)
        chunks = server_sent(first, events, writer, self.num_choices)
        return EventStream(chunks, self._headers(first[0].event))

    async def _events(self, prepare: Prepare) -> Choices:
        """Everything that happens for this request; closing it at any point undoes it."""
        deadline_s = self.live.deadline_s()
        try:
            self._check_num_choices()
            with self.live.gate.entered(self.num_choices):
                request = await within(deadline_s, prepare())
                choices = each_choice(request, self.num_choices)
                events = merged([self._choice(each, deadline_s) for each in choices])
                async with contextlib.aclosing(events):
                    async for told in events:
                        self._note(told)
                        yield told
        except (asyncio.CancelledError, GeneratorExit):
            self.request.state.left = True
            raise
        except Exception as error:
            self.request.state.error_code = to_api_error(error).code
            raise

    def _choice(self, request: EngineRequest, deadline_s: float | None) -> Events:
        meter = Meter(self.live.metrics, self.request.state.arrived_s)
        return metered(self.live.engine.submit(request), meter, deadline_s)

    def _check_num_choices(self) -> None:
        """The engine takes in all choices at once: more than run and wait together never fit."""
        most = self.live.settings.max_running + self.live.settings.max_waiting
        if self.num_choices > most:
            bounds = "--max-running and --max-waiting"
            message = f"This server answers at most {most} choices a request ({bounds})."
            raise ApiError("invalid_value", message, param="n")

    def _headers(self, event: TokenEvent) -> dict[str, str]:
        return {} if event.cache is None else {"x-lookm-kept-ratio": kept_ratio(event.cache)}

    def _note(self, told: Told) -> None:
        """What the log line of this request says, so far; its `n` answers count together."""
        state, event = self.request.state, told.event
        if event.cache is not None:
            cache = event.cache
            state.facts = (
                f"method={cache.policy.method} prompt={cache.prompt_tokens} "
                f"image_tokens={cache.image_tokens} kept={cache.kept_tokens}"
            )
        self.num_generated[told.choice] = event.num_generated
        generated = sum(self.num_generated.values())
        finish = f" finish={event.finish}" if event.finish else ""
        facts = getattr(state, "facts", "")
        state.summary = f"{facts} generated={generated}{finish}"


def _model(live: Services, name: str) -> Model:
    return Model(
        id=name,
        object="model",
        created=live.started_at,
        owned_by="lookm",
        max_model_len=live.translator.info.max_context_tokens,
    )
