"""OpenAI's routes. Each one reads its body, asks the engine, and writes an answer or a stream.

Knows which parts a request passes through, in which order. Everything else is in those parts.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from lookm import policy
from lookm.types import Request as EngineRequest
from lookm.types import TokenEvent
from server.api_errors import ApiError, to_api_error
from server.health import Live, tenant
from server.media import reads_pdf, reads_video
from server.openai import openapi
from server.openai.abort import abort_at, abort_on_disconnect
from server.openai.openapi import STREAMED, ErrorEnvelope, described
from server.openai.reasoning import thinking_reader
from server.openai.request.body import read
from server.openai.request.sampling import expected_tokens, num_logprobs
from server.openai.request.translate import Tenant
from server.openai.response.chat_chunks import ChatChunks
from server.openai.response.choices import (
    Acceptance,
    ChoiceEvent,
    ChoiceEvents,
    Submit,
    choice_events,
    each_choice,
    first_events,
    in_turn,
    merged,
)
from server.openai.response.kept_positions import positions_usage
from server.openai.response.stream import EventStream, collect, ended, written
from server.openai.response.text_chunks import TextChunks
from server.openai.response.timings import timings_usage
from server.openai.response.whole import WholeAnswer, whole_json
from server.openai.response.writers import AnswerHeader, CompletionWriter, Writer
from server.openai.schemas.answers import (
    Accepts,
    ChatCompletion,
    Model,
    ModelList,
    TextCompletion,
    kept_ratio,
)
from server.openai.schemas.requests import ChatRequest, CompletionRequest, Generation
from server.openai.tools.checks import call_reader
from server.request_metrics import RequestMetrics
from server.services import Services
from server.stages import engine_stages, stage
from server.turns import current_owner

EXAMPLE_MODEL = "llava-demo"
HEADERS_WAIT_S = 0.5  # for the first events, once the engine has accepted the request

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
    accepted = Acceptance(body.n or 1)
    handler = RequestHandler(live, request, body, f"chatcmpl-{uuid.uuid4().hex}", accepted)
    translator = live.translator
    prepare = partial(translator.chat, body, handler.id, tenant(request, live))
    new_reader = partial(call_reader, body, translator.tool_support)
    new_thinker = partial(thinking_reader, body, translator.thinking)
    chunks = ChatChunks(handler.header, new_reader, new_thinker)
    return await handler.respond(prepare, CompletionWriter(chunks))


@router.post(
    "/completions",
    openapi_extra=described(CompletionRequest, openapi.text_example(EXAMPLE_MODEL)),
    responses={200: {"model": TextCompletion, "content": STREAMED}},
)
async def completions(request: Request, live: Live) -> Response:
    """Continue a text, without a chat template."""
    body = await read(CompletionRequest, request)
    accepted = Acceptance(body.n or 1)
    handler = RequestHandler(live, request, body, f"cmpl-{uuid.uuid4().hex}", accepted)
    prepare = partial(live.translator.completion, body, handler.id, tenant(request, live))
    return await handler.respond(prepare, CompletionWriter(TextChunks(handler.header)))


@router.get("/models")
async def models(request: Request, live: Live) -> ModelList:
    """The model, its aliases, and the model with each cache policy that the API key may ask for."""
    asker, names = tenant(request, live), live.translator.names
    allowed = asker.limits.allows
    listed = [n for n in names.listed() if (named := names.policy(n)) is None or allowed(named)]
    return ModelList(object="list", data=[_model(live, name, asker) for name in listed])


@router.get("/models/{model:path}")
async def model(model: str, request: Request, live: Live) -> Model:
    """One model; any valid policy may follow its name."""
    try:
        live.translator.names.policy(model)
    except ApiError as error:
        raise ApiError("model_not_found", error.message, param="model") from None
    return _model(live, model, tenant(request, live))


@dataclass(frozen=True, slots=True)
class RequestHandler:
    """One request on its way from a parsed body to a response."""

    live: Services
    request: Request
    body: Generation
    id: str
    accepted: Acceptance
    num_generated: dict[int, int] = field(default_factory=dict)
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)  # until it is over

    @property
    def num_choices(self) -> int:
        """How many answers the client wants."""
        return self.body.n or 1

    @property
    def header(self) -> AnswerHeader:
        """What every answer and chunk repeats."""
        options = self.body.stream_options
        wants_usage = bool(options and options.include_usage)
        return AnswerHeader(
            id=self.id,
            model=self.body.model,
            fingerprint=self.live.fingerprint,
            include_usage=wants_usage,
            logprobs=num_logprobs(self.body) is not None,
        )

    async def respond(self, prepare: Prepare, writer: Writer) -> Response:
        """The response. A client that leaves aborts it, before and after the first token."""
        events = self._events(prepare)
        work = self._stream(events, writer) if self.body.stream else self._whole(events, writer)
        return await abort_on_disconnect(self.request.receive, work)

    async def _whole(self, events: ChoiceEvents, writer: Writer) -> Response:
        collected = await collect(events, self.num_choices)
        headers = self._headers(collected[0].last)
        written = await whole_json(writer, collected)
        return WholeAnswer(written, headers)

    async def _stream(self, events: ChoiceEvents, writer: Writer) -> Response:
        """Headers wait for the engine's consent: what is refused until then has a proper status.

        And a moment for the first events, which say what was kept.
        """
        first = asyncio.create_task(first_events(events, self.num_choices))
        try:
            await self.accepted.or_ended(first, HEADERS_WAIT_S)
            headers = self._headers(first.result()[0].event) if first.done() else {}
        except BaseException:
            await ended(first)
            raise
        chunks = written(first, events, writer, self.num_choices)
        keep_alive_s = self.live.settings.stream_keep_alive_s
        return EventStream(chunks, first, events, headers, keep_alive_s)

    async def _events(self, prepare: Prepare) -> ChoiceEvents:
        """Everything that happens for this request; closing it at any point undoes it."""
        deadline_s = self.live.deadline_s()
        try:
            self._check_num_choices()
            with self.live.gate.entered(self.num_choices), self.held:
                began_s = time.perf_counter()
                with stage("media"):
                    request = await abort_at(deadline_s, prepare())
                media_s = time.perf_counter() - began_s
                request = replace(request, num_coming=self.live.num_coming(self.num_choices))
                requests = enumerate(each_choice(request, self.num_choices))
                choices = [self._choice(n, each, deadline_s) for n, each in requests]
                async with contextlib.aclosing(merged(choices)) as events:
                    self._charge(request)
                    async for item in events:
                        self._note(item)
                        item = self._with_images(self._with_timings(item, media_s), request)
                        yield await self._with_positions(item, request)
        except (asyncio.CancelledError, GeneratorExit):
            self.request.state.left = True
            raise
        except Exception as error:
            self.request.state.error_code = to_api_error(error).code
            raise

    def _charge(self, request: EngineRequest) -> None:
        """Hold what the answers may cost the API key, until they are over. Raises `ApiError`."""
        if (account := self.live.keys.current()) is None:
            return
        answer_tokens = expected_tokens(self.body, request.sampling)
        charge = account.charged(
            len(request.prompt_ids),
            answer_tokens * self.num_choices,
            lambda: sum(self.num_generated.values()) if self.num_generated else None,
        )
        self.held.enter_context(charge)

    def _with_timings(self, item: ChoiceEvent, media_s: float) -> ChoiceEvent:
        """The event with its timings, where it is the last and they are asked for."""
        options, timing = self.body.usage_options, item.event.timing
        if timing is not None:
            engine_stages(timing, item.choice)
        if timing is None or options is None or not options.timings:
            return item
        total_s = time.perf_counter() - self.request.state.arrived_s
        return replace(item, timings=timings_usage(timing, media_s, total_s))

    def _with_images(self, item: ChoiceEvent, request: EngineRequest) -> ChoiceEvent:
        """The event with the tokens of each image, where it is the last."""
        if item.event.finish is None or not request.images:
            return item
        counts = self.live.translator.processor.tokens_per_image(request.images)
        return replace(item, tokens_per_image=counts)

    async def _with_positions(self, item: ChoiceEvent, request: EngineRequest) -> ChoiceEvent:
        """The event with its positions as they are sent, where it has any."""
        kept, translator = item.event.positions, self.live.translator
        if kept is None:
            return item
        work = partial(positions_usage, kept, request, translator.processor)
        return replace(item, positions=await translator.pools.text(work))

    def _choice(
        self, choice: int, request: EngineRequest, deadline_s: float | None
    ) -> ChoiceEvents:
        metrics = RequestMetrics(self.live.metrics, self.request.state.arrived_s)
        submit: Submit = partial(self.live.engine.submit, request)
        if self.num_choices > 1:
            submit = partial(in_turn, self.live.choice_turns, submit)
        if (turns := self.live.key_turns.current()) is not None:
            submit = partial(in_turn, turns, submit)
        return choice_events(choice, submit(self.accepted), metrics, deadline_s)

    def _check_num_choices(self) -> None:
        """The engine takes in all choices at once: more than run and wait together never fit."""
        settings = self.live.settings
        max_choices = settings.max_running + settings.max_waiting
        bounds = "--max-running and --max-waiting"
        held = self.live.max_held(current_owner().key)
        if held is not None and current_owner().key:
            max_choices = min(max_choices, held)
            bounds = "--max-running-per-key or the key's places"
        if self.num_choices > max_choices:
            message = f"This server answers at most {max_choices} choices a request ({bounds})."
            raise ApiError("invalid_value", message, param="n")

    def _headers(self, event: TokenEvent) -> dict[str, str]:
        return {} if event.cache is None else {"x-lookm-kept-ratio": kept_ratio(event.cache)}

    def _note(self, item: ChoiceEvent) -> None:
        """What the log line of this request says, so far; its `n` answers count together."""
        state, event = self.request.state, item.event
        if event.cache is not None:
            cache = event.cache
            state.facts = {
                "method": cache.policy.method,
                "prompt": cache.prompt_tokens,
                "image_tokens": cache.image_tokens,
                "kept": cache.kept_tokens,
            }
            if cache.elastic is not None:
                state.facts["keep"] = cache.policy.keep
        self.num_generated[item.choice] = event.num_generated
        generated = sum(self.num_generated.values())
        facts = getattr(state, "facts", {})
        ending = {"finish": event.finish} if event.finish else {}
        state.summary = {"id": self.id} | facts | {"generated": generated} | ending


def _model(live: Services, name: str, asker: Tenant) -> Model:
    translator = live.translator
    named = translator.names.policy(name)
    return Model(
        id=name,
        object="model",
        created=live.started_at,
        owned_by="lookm",
        root=translator.names.full(name),
        max_model_len=translator.info.max_context_tokens,
        accepts=Accepts(
            text=True,
            images=True,
            max_images=live.settings.max_images,
            fewest_image_tokens=translator.processor.fewest_image_tokens,
            video=reads_video(),
            files=reads_pdf(),
            tools=translator.tool_support.dialect is not None,
        ),
        kv_cache=policy.to_string(
            named or asker.limits.default_policy or translator.default_policy
        ),
        policies=translator.presets,
    )
