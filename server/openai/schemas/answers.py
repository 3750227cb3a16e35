"""What a client gets back, in OpenAI's shape.

Fields that are not set are not sent, so that a chunk carries `usage` where it is wanted.
Knows the shapes and how events become them; nothing about HTTP.
"""

from typing import Annotated, Literal

from pydantic import Field

from lookm.types import CacheReport, TokenEvent
from server.openai.schemas.logprobs import ChatLogprobs, TextLogprobs
from server.openai.schemas.usage import Answer, Usage

Finish = Literal["stop", "length", "tool_calls"]


class AnswerFunction(Answer):
    """Which tool is called; `arguments` is the text of a JSON object. In chunks, parts of it."""

    name: str | None = None
    arguments: str


class AnswerCall(Answer):
    """A call that the client should make. `index` is there in chunks, the rest in the first
    chunk of a call."""

    index: int | None = None
    id: str | None = None
    type: Literal["function"] | None = None
    function: AnswerFunction


class AssistantAnswer(Answer):
    """The message of a chat answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: Annotated[
        str | None, Field(description="what the model thought before it answered")
    ] = None
    tool_calls: list[AnswerCall] | None = None


class Choice(Answer):
    """One choice of a chat answer."""

    index: int
    message: AssistantAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(Answer):
    """The answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


class Delta(Answer):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[AnswerCall] | None = None


class ChunkChoice(Answer):
    """One choice of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(Answer):
    """One event of a streamed chat answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class TextChoice(Answer):
    """One choice of a text completion, whole or in a chunk."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None


class TextCompletion(Answer):
    """The answer of `POST /v1/completions`, and each event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | None = None


class Accepts(Answer):
    """What a request may bring."""

    text: bool
    images: bool
    max_images: Annotated[int, Field(description="in one request")]
    fewest_image_tokens: Annotated[
        int, Field(description="no image takes fewer: less as `max_tokens_per_image` is refused")
    ]
    video: bool
    files: Annotated[bool, Field(description="PDFs; each page counts as an image")]
    tools: Annotated[bool, Field(description="whether the model's chat template shows them")]


class Model(Answer):
    """The model, alone or with a cache policy, or an alias of either."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: Annotated[str, Field(description="what an alias stands for; else the same as `id`")]
    max_model_len: Annotated[int, Field(description="context: prompt and answer, in tokens")]
    accepts: Accepts
    kv_cache: Annotated[str, Field(description="the policy of a request that names none itself")]
    policies: Annotated[list[str], Field(description="the presets that requests may name")]


class ModelList(Answer):
    """The answer of `GET /v1/models`."""

    object: Literal["list"]
    data: list[Model]


def finish_of(last: TokenEvent, *, called: bool = False) -> Finish:
    """OpenAI's word for how a choice ended. Aborts and errors never get this far."""
    assert last.finish in ("stop", "length"), last.finish
    return "tool_calls" if called and last.finish == "stop" else last.finish


def kept_ratio(report: CacheReport) -> str:
    """The value of the `x-lookm-kept-ratio` header."""
    return f"{report.kept_tokens / max(1, report.prompt_tokens):.4f}"
