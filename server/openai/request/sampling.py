"""From a request's fields to the engine's `Sampling`: defaults, and what may not be combined.

Knows the fields' meaning; the engine checks what depends on the model (token ids, grammars).
"""

import json
from dataclasses import dataclass

from lookm.errors import PromptTooLongError
from lookm.models.generation import GenerationDefaults
from lookm.types import Sampling, Structure
from server.api_errors import ApiError
from server.keys.account import ANSWER_TOKENS
from server.openai.schemas.requests import (
    ChatRequest,
    CompletionRequest,
    Generation,
    JsonObjectFormat,
    JsonSchemaFormat,
)

COLDEST = 1e-5
OPENAI = GenerationDefaults()


@dataclass(frozen=True, slots=True)
class Room:
    """How many tokens an answer may have, and how many it gets where the request does not say."""

    num_prompt: int
    max_tokens: int
    default: int


def check_options(body: Generation) -> None:
    """Refuse fields that are valid alone but not together. Raises `ApiError`."""
    if body.stream_options is not None and not body.stream:
        raise _clash("stream_options", "'stream_options' is only allowed with 'stream': true.")
    options, streams = body.usage_options, body.stream_options
    if options and options.timings and body.stream and not (streams and streams.include_usage):
        message = "A stream has a 'usage' only with 'stream_options': {\"include_usage\": true}."
        raise _clash("usage_options.timings", message)
    if isinstance(body, ChatRequest):
        newer = body.max_completion_tokens
        if None not in (newer, body.max_tokens) and newer != body.max_tokens:
            message = "'max_tokens' and 'max_completion_tokens' differ: give one of them."
            raise _clash("max_completion_tokens", message)
        if body.top_logprobs is not None and not body.logprobs:
            raise _clash("top_logprobs", "'top_logprobs' is only allowed with 'logprobs': true.")


def sampling(
    body: Generation,
    room: Room,
    structure: Structure | None = None,
    defaults: GenerationDefaults = OPENAI,
) -> Sampling:
    """Where the request does not say: `defaults`, and as many tokens as fit."""
    stop = body.stop or ()
    biases = (body.logit_bias or {}).items()
    return Sampling(
        max_tokens=max_tokens(body, room),
        temperature=temperature(_or(body.temperature, defaults.temperature)),
        top_p=_or(body.top_p, defaults.top_p),
        top_k=max(0, int(_or(body.top_k, defaults.top_k))),
        seed=body.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        ignore_eos=bool(body.ignore_eos),
        min_p=_or(body.min_p, defaults.min_p),
        repetition_penalty=_or(body.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=tuple((int(token), bias) for token, bias in biases),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        min_tokens=body.min_tokens or 0,
        logprobs=num_logprobs(body),
        structure=structure or answer_structure(body),
    )


def max_tokens(body: Generation, room: Room) -> int:
    """What the request says, or all that fits. Raises `PromptTooLongError` for more than fits."""
    newer = body.max_completion_tokens if isinstance(body, ChatRequest) else None
    wanted = body.max_tokens or newer or room.default
    if wanted > room.max_tokens:
        raise PromptTooLongError(
            f"The prompt has {room.num_prompt} tokens and {wanted} more were asked for, but the "
            f"model's context has room for {room.max_tokens}: ask for fewer.",
            param="max_tokens" if body.max_tokens else "max_completion_tokens",
        )
    return wanted


def expected_tokens(body: Generation, chosen: Sampling) -> int:
    """How many tokens an answer counts for until it is over, against what its API key may use."""
    newer = body.max_completion_tokens if isinstance(body, ChatRequest) else None
    bounded = body.max_tokens or newer
    return chosen.max_tokens if bounded else min(chosen.max_tokens, ANSWER_TOKENS)


def temperature(given: float) -> float:
    """Below `COLDEST` logits overflow, and sampling is greedy anyway."""
    return given if given >= COLDEST else 0.0


def _or(given: float | None, default: float) -> float:
    return default if given is None else given


def num_logprobs(body: Generation) -> int | None:
    """How many likely tokens to give beside the generated one; None gives nothing."""
    if isinstance(body, ChatRequest):
        return (body.top_logprobs or 0) if body.logprobs else None
    return body.logprobs if isinstance(body, CompletionRequest) else None


def answer_structure(body: Generation) -> Structure | None:
    """The form that `response_format` asks for."""
    form = body.response_format if isinstance(body, ChatRequest) else None
    if isinstance(form, JsonSchemaFormat):
        return Structure("json_schema", json.dumps(form.json_schema.schema_))
    return Structure("json_object") if isinstance(form, JsonObjectFormat) else None


def _clash(param: str, message: str) -> ApiError:
    return ApiError("invalid_value", message, param=param)
