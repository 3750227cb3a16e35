"""What a client may send to `POST /v1/responses`. Strict, as `requests`, whose fields it shares.

Knows OpenAI's request format; `request.responses` turns it into a chat, and that is answered.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from server.openai.schemas.fields import Accepted, Honoured, Refused
from server.openai.schemas.input_items import MAX_ITEMS, InputItem
from server.openai.schemas.requests import (
    CACHE_HINT,
    MAX_NAME,
    WITH_TEMPLATE,
    Generation,
    JsonObjectFormat,
    Metadata,
    StreamOptions,
    TextFormat,
    TokenCount,
)
from server.openai.schemas.strict import ARRAY, OBJECT, STRING, Strict
from server.openai.schemas.tools import ToolName

# What `include` may ask for; the last is valid because it asks for what there is no need of.
LOGPROBS, IMAGES = "message.output_text.logprobs", "message.input_image.image_url"
ENCRYPTED = "reasoning.encrypted_content"


def function_only(kind: object) -> object:
    """The type of a tool. Built-in ones are documented by OpenAI, and so refused with a reason."""
    if isinstance(kind, str) and kind != "function":
        raise PydanticCustomError(
            "unsupported_parameter",
            "The tool '{kind}' is none of this server's: give tools of type 'function'.",
            {"kind": kind[:MAX_NAME]},
        )
    return kind


def included(what: object) -> object:
    """One entry of `include`; others are documented by OpenAI, and so refused with a reason."""
    if isinstance(what, str) and what not in (LOGPROBS, IMAGES, ENCRYPTED):
        raise PydanticCustomError(
            "unsupported_parameter",
            "'{what}' cannot be included: there is only {known}.",
            {"what": what[:MAX_NAME], "known": f"'{LOGPROBS}' and '{IMAGES}'"},
        )
    return what


class FunctionTool(Strict):
    """A function that the model may call."""

    type: Annotated[Literal["function"], BeforeValidator(function_only), Honoured()]
    name: Annotated[ToolName, Honoured()]
    description: Annotated[str | None, Honoured()] = None
    parameters: Annotated[
        dict[str, Any] | None, Honoured("a JSON schema of an object; none: no arguments")
    ] = None
    strict: Annotated[
        bool | None, Honoured("as in a chat: where nothing is said, not enforced")
    ] = None
    output_schema: Annotated[dict[str, Any] | None, Accepted("the model does not see it")] = None
    allowed_callers: Annotated[
        object, Refused("Only the model itself calls functions.", (["direct"],))
    ] = None
    defer_loading: Annotated[object, Refused("Tools are never loaded later.", (False,))] = None
    async_: Annotated[
        object, Field(alias="async"), Refused("Calls are answered in order.", (False,))
    ] = None


class ChosenTool(Strict):
    """This tool and no other."""

    type: Annotated[Literal["function"], Honoured()]
    name: Annotated[str, Honoured()]


class AllowedTools(Strict):
    """These tools and no others."""

    type: Annotated[Literal["allowed_tools"], Honoured()]
    mode: Annotated[Literal["auto", "required"], Honoured()]
    tools: Annotated[list[ChosenTool], Field(min_length=1, max_length=128), Honoured()]


class JsonSchemaText(Strict):
    """JSON that fits a schema: `json_schema` of a chat's `response_format`, flat."""

    type: Annotated[Literal["json_schema"], Honoured()]
    name: Annotated[Annotated[str, Field(max_length=MAX_NAME)], Accepted("not shown to the model")]
    schema_: Annotated[dict[str, Any], Field(alias="schema"), Honoured()]
    description: Annotated[str | None, Accepted("the model does not see it")] = None
    strict: Annotated[
        bool | None, Honoured("every schema is enforced; a strict one has OpenAI's formats only")
    ] = None


class TextConfig(Strict):
    """The form of the answer's text."""

    format: Annotated[
        Annotated[TextFormat | JsonObjectFormat | JsonSchemaText, Field(discriminator="type")]
        | None,
        Honoured("`text`, `json_object` or `json_schema`; always enforced"),
    ] = None
    verbosity: Annotated[object, Refused("Say in the prompt how long to be.", ("medium",))] = None


class Reasoning(Strict):
    """How the model thinks, which is its template's to say."""

    effort: Annotated[object, Refused("How long a model thinks cannot be set.", ("none",))] = None
    summary: Annotated[str | None, Accepted("what it thought is given as it is")] = None
    generate_summary: Annotated[str | None, Accepted("what it thought is given as it is")] = None
    context: Annotated[
        object, Refused("What it thought is not shown again.", ("auto", "current_turn"))
    ] = None
    mode: Annotated[object, Refused("There is one mode.", ("standard",))] = None


class ResponsesRequest(Generation):
    """The body of `POST /v1/responses`. Its base's fields are extensions that chats have, too."""

    input: Annotated[
        Annotated[str, STRING]
        | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_ITEMS), ARRAY],
        Honoured("a text, or items: messages, calls of functions and their results"),
    ]
    instructions: Annotated[
        str | None, Honoured("a system message at the beginning, of this response only")
    ] = None
    previous_response_id: Annotated[
        Annotated[str, Field(max_length=256)] | None,
        Honoured("its input and output stand before `input`; 404 where it is not stored"),
    ] = None
    store: Annotated[
        bool | None,
        Honoured("else true: kept in memory within `--response-store-memory`, for its API key"),
    ] = None
    max_output_tokens: Annotated[TokenCount | None, Honoured("else all that fits")] = None
    top_logprobs: Annotated[
        Annotated[int, Field(ge=0, le=20)] | None, Honoured("more than 0: `logprobs` are sent")
    ] = None
    include: Annotated[
        Annotated[list[Annotated[str, BeforeValidator(included)]], Field(max_length=16)] | None,
        Honoured(f"`{LOGPROBS}`, `{IMAGES}`; `{ENCRYPTED}` passes, for nothing is hidden"),
    ] = None
    text: Annotated[TextConfig | None, Honoured("`format` and `verbosity`")] = None
    tools: Annotated[
        Annotated[list[FunctionTool], Field(max_length=128)] | None,
        Honoured(f"functions, {WITH_TEMPLATE}; no built-in tools"),
    ] = None
    tool_choice: Annotated[
        Annotated[Literal["none", "auto", "required"], STRING]
        | Annotated[Annotated[ChosenTool | AllowedTools, Field(discriminator="type")], OBJECT]
        | None,
        Honoured("as in a chat"),
    ] = None
    parallel_tool_calls: Annotated[bool | None, Honoured("false: one call at most")] = None
    metadata: Annotated[
        Metadata | None,
        Honoured("sent back; up to 16 keys of up to 64 characters, values of up to 512"),
    ] = None
    reasoning: Annotated[Reasoning | None, Honoured("what asks for nothing passes")] = None
    stream_options: Annotated[StreamOptions | None, Honoured("usage is always sent")] = None
    service_tier: Annotated[str | None, Accepted("there is one tier")] = None
    safety_identifier: Annotated[
        Annotated[str, Field(max_length=MAX_NAME)] | None, Accepted("sent back")
    ] = None
    prompt_cache_retention: Annotated[str | None, Accepted(CACHE_HINT)] = None
    prompt_cache_options: Annotated[object, Accepted(CACHE_HINT)] = None
    max_tool_calls: Annotated[
        TokenCount | None, Accepted("it bounds built-in tools, of which there are none")
    ] = None

    n: Annotated[Literal[1] | None, Refused("A response has one answer.", (1,))] = None
    max_tokens: Annotated[None, Refused("In responses it is `max_output_tokens`.")] = None
    truncation: Annotated[
        object, Refused("Nothing is left out: shorten the input.", ("disabled",))
    ] = None
    background: Annotated[
        object, Refused("A response lasts as long as its connection.", (False,))
    ] = None
    conversation: Annotated[object, Refused("Go on from `previous_response_id`.")] = None
    prompt: Annotated[object, Refused("There are no stored prompts.")] = None
    context_management: Annotated[object, Refused("Nothing is compacted.", ([],))] = None
    moderation: Annotated[object, Refused("There is no moderation model.")] = None
    access_programs: Annotated[object, Refused("There are none.")] = None
    image: Annotated[
        object,
        Refused(
            "`kv_cache` says what is kept of images.",
            ({"context_compression": "auto"}, {"context_compression": "disabled"}),
        ),
    ] = None
