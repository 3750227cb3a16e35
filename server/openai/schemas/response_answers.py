"""What a client of `/v1/responses` gets back, in OpenAI's shape; `usage.kv_cache` is ours.

Knows the shapes and how a chat's usage becomes a response's; nothing about how items come about.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from server.openai.schemas.logprobs import Entry
from server.openai.schemas.usage import Answer, KvCacheUsage, TimingsUsage, Usage

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputTextAnswer(Answer):
    """A text of the answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Entry]


class MessageAnswer(Answer):
    """What the model says."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: list[OutputTextAnswer]


class CallAnswer(Answer):
    """A function that the client should call."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class ReasoningText(Answer):
    """A text of what the model thought."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningAnswer(Answer):
    """What the model thought before it answered."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[Any]
    content: list[ReasoningText]


OutputAnswer = MessageAnswer | CallAnswer | ReasoningAnswer


class InputTokensDetails(Answer):
    """Of the prompt."""

    cached_tokens: int
    cache_write_tokens: int
    image_tokens: int
    tokens_per_image: Annotated[
        list[int] | None, Field(description="those of each image, in their order")
    ] = None


class OutputTokensDetails(Answer):
    """Of the answer."""

    reasoning_tokens: int


class ResponseUsage(Answer):
    """What the response took."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int
    kv_cache: KvCacheUsage
    timings: Annotated[
        TimingsUsage | None, Field(description="where `usage_options.timings` asked for them")
    ] = None


class ResponseFailure(Answer):
    """Why a response failed. `code` is one of OpenAI's."""

    code: Literal["server_error", "invalid_prompt"]
    message: str
    param: str | None
    type: str


class Incomplete(Answer):
    """Why a response is not whole."""

    reason: Literal["max_output_tokens"]


class ResponseAnswer(Answer):
    """The answer of `POST /v1/responses`, and of `GET /v1/responses/{id}`."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: bool
    error: ResponseFailure | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputAnswer]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: Annotated[bool, Field(description="whether it can be asked for, and gone on from")]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    metadata: dict[str, str]


class InputItems(Answer):
    """The answer of `GET /v1/responses/{id}/input_items`."""

    object: Literal["list"]
    data: Sequence[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(Answer):
    """The answer of `DELETE /v1/responses/{id}`."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


def response_usage(usage: Usage, reasoning_tokens: int) -> ResponseUsage:
    """The same under the names that responses have for it."""
    details = usage.prompt_tokens_details
    found = ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(
            cached_tokens=details.cached_tokens,
            cache_write_tokens=0,
            image_tokens=details.image_tokens,
        ),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning_tokens),
        total_tokens=usage.total_tokens,
        kv_cache=usage.kv_cache,
    )
    if details.tokens_per_image:  # set, and so sent
        found.input_tokens_details.tokens_per_image = details.tokens_per_image
    if usage.timings is not None:
        found.timings = usage.timings
    return found
