"""What a client may send. Strict: a wrong type or an unknown field is an error, never a guess.

Knows OpenAI's request format and how each field is treated (`fields`). Refuses to know what a field
does: `translate` turns these models into the engine's values.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.openai.schemas import images
from server.openai.schemas.fields import Accepted, Honoured, Refused
from server.openai.schemas.files import FilePart
from server.openai.schemas.images import ImagePart
from server.openai.schemas.kv_cache import KvCache
from server.openai.schemas.strict import ARRAY, OBJECT, STRING, AtMost, Strict
from server.openai.schemas.tools import ToolCall, ToolChoice, Tools
from server.openai.schemas.video import VideoPart

OLD_TOOLS = "Deprecated by OpenAI: use `tools`."
MAX_NAME = 64  # characters, as OpenAI documents
CACHE_HINT = images.CACHE_HINT
WITH_TEMPLATE = "where the model's chat template shows tools; else refused"


class TextPart(Strict):
    """A piece of text."""

    type: Annotated[Literal["text"], Honoured()]
    text: Annotated[str, Honoured()]
    prompt_cache_breakpoint: Annotated[object, Accepted(CACHE_HINT)] = None


class RefusalPart(Strict):
    """What an earlier answer said instead of answering; the model sees it as text."""

    type: Annotated[Literal["refusal"], Honoured()]
    refusal: Annotated[str, Honoured()]


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]
Content = (
    Annotated[str, STRING] | Annotated[list[Part], Field(min_length=1, max_length=4096), ARRAY]
)
UserPart = Annotated[TextPart | ImagePart | VideoPart | FilePart, Field(discriminator="type")]
UserContent = (
    Annotated[str, STRING] | Annotated[list[UserPart], Field(min_length=1, max_length=4096), ARRAY]
)
AnsweredPart = Annotated[
    TextPart | ImagePart | VideoPart | RefusalPart, Field(discriminator="type")
]
Answered = (
    Annotated[str, STRING]
    | Annotated[list[AnsweredPart], Field(min_length=1, max_length=4096), ARRAY]
)
ToolContent = (
    Annotated[str, STRING] | Annotated[list[TextPart], Field(min_length=1, max_length=4096), ARRAY]
)
Name = Annotated[
    Annotated[str, Field(max_length=1024)] | None, Accepted("chat templates do not show it")
]


class SystemMessage(Strict):
    """Instructions; `developer` is OpenAI's newer word for `system`."""

    role: Annotated[Literal["system", "developer"], Honoured()]
    content: Annotated[Content, Honoured()]
    name: Name = None


class UserMessage(Strict):
    """A turn of the user."""

    role: Annotated[Literal["user"], Honoured()]
    content: Annotated[UserContent, Honoured("text, images and files")]
    name: Name = None


class AssistantMessage(Strict):
    """An earlier answer."""

    role: Annotated[Literal["assistant"], Honoured()]
    content: Annotated[Answered | None, Honoured("null: it said nothing")] = None
    name: Name = None
    refusal: Annotated[str | None, Honoured("shown as text, where there is no `content`")] = None
    reasoning_content: Annotated[
        str | None, Accepted("what it thought is not shown to the model again")
    ] = None
    tool_calls: Annotated[
        Annotated[list[ToolCall], Field(max_length=128)] | None, Honoured(WITH_TEMPLATE)
    ] = None
    function_call: Annotated[object, Refused(OLD_TOOLS)] = None
    audio: Annotated[object, Refused("Audio is not supported.")] = None
    annotations: Annotated[object, Refused("Annotations are not supported.", ([],))] = None


class ToolMessage(Strict):
    """What a tool answered to a call."""

    role: Annotated[Literal["tool"], Honoured(WITH_TEMPLATE)]
    content: Annotated[ToolContent, Honoured()]
    tool_call_id: Annotated[str, Honoured("the `id` of a call in an earlier turn")]
    name: Annotated[str | None, Accepted("the call names the tool")] = None


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]


class JsonSchema(Strict):
    """A schema that the answer fits. It is always enforced, `strict` or not.

    Formats that nobody knows are ignored; in a strict schema they are refused.
    """

    name: Annotated[
        Annotated[str, Field(max_length=MAX_NAME)], Accepted("the model does not see it")
    ]
    schema_: Annotated[dict[str, Any], Field(alias="schema"), Honoured()]
    description: Annotated[str | None, Accepted("the model does not see it")] = None
    strict: Annotated[
        bool | None, Honoured("every schema is enforced; a strict one has OpenAI's formats only")
    ] = None


class TextFormat(Strict):
    """Free text."""

    type: Annotated[Literal["text"], Honoured()]


class JsonObjectFormat(Strict):
    """A JSON object."""

    type: Annotated[Literal["json_object"], Honoured()]


class JsonSchemaFormat(Strict):
    """JSON that fits a schema."""

    type: Annotated[Literal["json_schema"], Honoured()]
    json_schema: Annotated[JsonSchema, Honoured()]


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: Annotated[bool | None, Honoured()] = None
    include_obfuscation: Annotated[bool | None, Accepted("nothing is obfuscated")] = None


class UsageOptions(Strict):
    """What else `usage` says of an answer."""

    timings: Annotated[
        bool | None,
        Honoured(
            "true: `usage.timings` has the seconds of each stage: queue, media, vision, prefill, "
            "look, decode, and the total; in a stream with `stream_options.include_usage`"
        ),
    ] = None


Stop = (
    Annotated[str, Field(min_length=1, max_length=256), STRING]
    | Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=4), ARRAY
    ]
)
TokenCount = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
LogitBias = Annotated[dict[TokenKey, Bias], AtMost(1024)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], AtMost(16)
]


class Generation(Strict):
    """The fields that chat and text completions share."""

    model: Annotated[str, Honoured("`name` or `name:policy`, as in `llava-demo:look-m@0.2`")]
    kv_cache: Annotated[
        Annotated[str, STRING] | Annotated[KvCache, OBJECT] | None,
        Honoured("extension: `look-m@0.2` or an object; else the server's default"),
    ] = None
    prompt_cache_key: Annotated[
        Annotated[str, Field(max_length=1024)] | None,
        Honoured("prompts reuse only what was computed under the same key"),
    ] = None
    cache_salt: Annotated[
        Annotated[str, Field(max_length=1024)] | None,
        Honoured("extension, vLLM's: as `prompt_cache_key`; both together are the salt"),
    ] = None
    priority: Annotated[
        Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None,
        Honoured("extension, vLLM's: the lowest comes first; 0 where none is given"),
    ] = None
    max_tokens: Annotated[TokenCount | None, Honoured("else all that fits the context")] = None
    temperature: Annotated[Annotated[float, Field(ge=0, le=2)] | None, Honoured()] = None
    top_p: Annotated[Annotated[float, Field(ge=0, le=1)] | None, Honoured()] = None
    top_k: Annotated[
        Annotated[int, Field(ge=-1, le=2**31 - 1)] | None, Honoured("extension; 0 is off")
    ] = None
    seed: Annotated[Seed | None, Honoured()] = None
    stop: Annotated[Stop | None, Honoured("up to 4, of up to 256 characters")] = None
    frequency_penalty: Annotated[Penalty | None, Honoured()] = None
    presence_penalty: Annotated[Penalty | None, Honoured()] = None
    logit_bias: Annotated[LogitBias | None, Honoured("by token id, up to 1024")] = None
    min_p: Annotated[Annotated[float, Field(ge=0, le=1)] | None, Honoured("extension")] = None
    repetition_penalty: Annotated[
        Annotated[float, Field(gt=0, le=100)] | None, Honoured("extension; 1 is off")
    ] = None
    min_tokens: Annotated[
        Annotated[int, Field(ge=0, le=2**31 - 1)] | None, Honoured("extension")
    ] = None
    stop_token_ids: Annotated[
        Annotated[list[TokenId], Field(max_length=128)] | None, Honoured("extension")
    ] = None
    ignore_eos: Annotated[bool | None, Honoured("extension, for load tests")] = None
    stream: Annotated[bool | None, Honoured()] = None
    stream_options: Annotated[StreamOptions | None, Honoured()] = None
    usage_options: Annotated[
        Annotated[UsageOptions, OBJECT] | None, Honoured("extension: what `usage` says")
    ] = None
    user: Annotated[Annotated[str, Field(max_length=1024)] | None, Accepted("not stored")] = None
    n: Annotated[
        Annotated[int, Field(ge=1, le=16)] | None, Honoured("1 to 16; choice i uses `seed` + i")
    ] = None


class ChatRequest(Generation):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096), Honoured()]
    max_completion_tokens: Annotated[TokenCount | None, Honoured("as `max_tokens`")] = None

    metadata: Annotated[
        Metadata | None,
        Accepted("not stored; up to 16 keys of up to 64 characters, values of up to 512"),
    ] = None
    store: Annotated[bool | None, Accepted("nothing is ever stored")] = None
    service_tier: Annotated[str | None, Accepted("there is one tier")] = None
    safety_identifier: Annotated[
        Annotated[str, Field(max_length=MAX_NAME)] | None, Accepted("not stored")
    ] = None
    prompt_cache_retention: Annotated[str | None, Accepted(CACHE_HINT)] = None
    prompt_cache_options: Annotated[object, Accepted(CACHE_HINT)] = None
    prediction: Annotated[object, Accepted("a hint for speed only")] = None

    logprobs: Annotated[bool | None, Honoured()] = None
    top_logprobs: Annotated[
        Annotated[int, Field(ge=0, le=20)] | None, Honoured("with `logprobs`")
    ] = None
    response_format: Annotated[ResponseFormat | None, Honoured("always enforced")] = None
    tools: Annotated[
        Tools | None, Honoured(f"{WITH_TEMPLATE}; calls are streamed as they are written")
    ] = None
    tool_choice: Annotated[
        ToolChoice | None,
        Honoured(
            "`none`, `auto`, `required` or one tool, the last two enforced; `allowed_tools`: the "
            "others are not shown to the model"
        ),
    ] = None
    parallel_tool_calls: Annotated[bool | None, Honoured("false: one call at most")] = None
    functions: Annotated[object, Refused(OLD_TOOLS, ([],))] = None
    function_call: Annotated[object, Refused(OLD_TOOLS, ("none", "auto"))] = None
    modalities: Annotated[object, Refused("Answers are text.", (["text"],))] = None
    audio: Annotated[object, Refused("Answers are text.")] = None
    reasoning_effort: Annotated[
        object, Refused("How long a model thinks cannot be set.", ("none",))
    ] = None
    verbosity: Annotated[object, Refused("Say in the prompt how long to be.", ("medium",))] = None
    web_search_options: Annotated[object, Refused("There is no web search.")] = None
    moderation: Annotated[object, Refused("There is no moderation model.")] = None


class TokenizeRequest(Strict):
    """The body of `POST /tokenize`: a chat that is counted and not answered."""

    model: Annotated[str, Honoured("as for chats")]
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096), Honoured()]
    tools: Annotated[Tools | None, Honoured("as for chats")] = None
    kv_cache: Annotated[
        Annotated[str, STRING] | Annotated[KvCache, OBJECT] | None,
        Honoured("a policy to estimate beside the presets"),
    ] = None


class CompletionRequest(Generation):
    """The body of `POST /v1/completions`: plain text, no chat template, no images."""

    prompt: Annotated[
        Annotated[str, STRING] | Annotated[list[str], Field(min_length=1, max_length=1), ARRAY],
        Honoured("one string, alone or in a list"),
    ]
    echo: Annotated[object, Refused("The prompt is not repeated.", (False,))] = None
    best_of: Annotated[object, Refused("Every answer is given: ask for `n`.", (1,))] = None
    suffix: Annotated[object, Refused("Insertion is not supported.", ("",))] = None
    logprobs: Annotated[Annotated[int, Field(ge=0, le=20)] | None, Honoured()] = None
