"""What `input` of a response may hold: messages, calls of functions, their results, thoughts.

Strict as all of `schemas`. Knows the shapes of OpenAI's items; `request.input_items` turns them
into a chat's messages, whose models say the rest of what is valid.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from server.openai.schemas.fields import Accepted, Honoured, Refused
from server.openai.schemas.images import CACHE_HINT, Level
from server.openai.schemas.strict import ARRAY, STRING, Strict
from server.openai.schemas.tools import ToolName

MAX_ITEMS = 4096
Id = Annotated[str, Field(max_length=256)]
ItemId = Annotated[Id | None, Honoured("kept; else one is made")]
Status = Annotated[
    Literal["in_progress", "completed", "incomplete"] | None, Accepted("shown as it is")
]
NO_CALLERS = "Only the model itself calls functions."


class InputText(Strict):
    """A piece of text."""

    type: Annotated[Literal["input_text"], Honoured()]
    text: Annotated[str, Honoured()]
    prompt_cache_breakpoint: Annotated[object, Accepted(CACHE_HINT)] = None


class InputImage(Strict):
    """An image, at this place of the text: as a chat's `image_url` part, or one of an upload."""

    type: Annotated[Literal["input_image"], Honoured()]
    image_url: Annotated[str | None, Honoured("as `image_url.url` of a chat")] = None
    file_id: Annotated[str | None, Honoured("else; as `file.file_id` of a chat")] = None
    detail: Annotated[Level, Honoured("as in a chat's `image_url`")] = None
    max_tokens_per_image: Annotated[
        int | None, Honoured("extension: as in a chat's `image_url`")
    ] = None
    prompt_cache_breakpoint: Annotated[object, Accepted(CACHE_HINT)] = None


class InputFile(Strict):
    """A document, at this place of the text: as a chat's `file` part."""

    type: Annotated[Literal["input_file"], Honoured()]
    file_data: Annotated[str | None, Honoured("as `file.file_data` of a chat")] = None
    file_id: Annotated[str | None, Honoured("as `file.file_id` of a chat")] = None
    filename: Annotated[str | None, Honoured("as `file.filename` of a chat")] = None
    file_url: Annotated[str | None, Honoured("as `file.file_url` of a chat")] = None
    pages: Annotated[str | None, Honoured("extension: as `file.pages` of a chat")] = None
    detail: Annotated[Level, Honoured("as `file.detail` of a chat")] = None
    max_tokens_per_image: Annotated[int | None, Honoured("extension: as in a chat's `file`")] = None
    prompt_cache_breakpoint: Annotated[object, Accepted(CACHE_HINT)] = None


class OutputText(Strict):
    """What the model said earlier."""

    type: Annotated[Literal["output_text"], Honoured()]
    text: Annotated[str, Honoured()]
    annotations: Annotated[list[Any] | None, Accepted("not shown to the model")] = None
    logprobs: Annotated[list[Any] | None, Accepted("not shown to the model")] = None


class OutputRefusal(Strict):
    """What it said instead of answering; the model sees it as text."""

    type: Annotated[Literal["refusal"], Honoured()]
    refusal: Annotated[str, Honoured()]


MessagePart = Annotated[
    InputText | InputImage | InputFile | OutputText | OutputRefusal, Field(discriminator="type")
]
InputPart = Annotated[InputText | InputImage | InputFile, Field(discriminator="type")]


class InputMessage(Strict):
    """A turn of anybody: the user's, the system's, or an earlier answer."""

    type: Annotated[Literal["message"], Honoured("may be left out")]
    role: Annotated[Literal["user", "assistant", "system", "developer"], Honoured()]
    content: Annotated[
        Annotated[str, STRING] | Annotated[list[MessagePart], Field(max_length=MAX_ITEMS), ARRAY],
        Honoured("`input_*` parts; of the assistant `output_text` and `refusal`"),
    ]
    id: ItemId = None
    status: Status = None
    phase: Annotated[
        Literal["commentary", "final_answer"] | None, Accepted("templates do not show it")
    ] = None


class FunctionCall(Strict):
    """A call in an earlier answer."""

    type: Annotated[Literal["function_call"], Honoured()]
    call_id: Annotated[Annotated[str, Field(min_length=1, max_length=256)], Honoured()]
    name: Annotated[ToolName, Honoured()]
    arguments: Annotated[str, Honoured("a JSON object, as text; any other text is shown as it is")]
    id: ItemId = None
    status: Status = None
    caller: Annotated[object, Refused(NO_CALLERS, ({"type": "direct"},))] = None
    namespace: Annotated[object, Refused("Functions have no namespaces.")] = None
    # The official client's helpers leave this on the calls they have read.
    parsed_arguments: Annotated[object, Accepted("`arguments` say it")] = None


class FunctionCallOutput(Strict):
    """What a function answered to a call."""

    type: Annotated[Literal["function_call_output"], Honoured()]
    call_id: Annotated[str, Honoured("the `call_id` of an earlier call")]
    output: Annotated[
        Annotated[str, STRING] | Annotated[list[InputPart], Field(max_length=MAX_ITEMS), ARRAY],
        Honoured("text, or `input_text` parts"),
    ]
    id: ItemId = None
    status: Status = None
    name: Annotated[str | None, Accepted("the call names the function")] = None
    caller: Annotated[object, Refused(NO_CALLERS, ({"type": "direct"},))] = None
    namespace: Annotated[object, Refused("Functions have no namespaces.")] = None


class ReasoningItem(Strict):
    """What the model thought earlier; it is not shown to it again."""

    type: Annotated[Literal["reasoning"], Honoured("not shown to the model again")]
    id: ItemId = None
    summary: Annotated[list[Any] | None, Accepted("not shown to the model")] = None
    content: Annotated[list[Any] | None, Accepted("not shown to the model")] = None
    encrypted_content: Annotated[str | None, Accepted("not shown to the model")] = None
    status: Status = None


class ItemReference(Strict):
    """An item of a stored response, by its id."""

    type: Annotated[Literal["item_reference"], Honoured("may be left out")]
    id: Annotated[Id, Honoured("of an item of a stored response")]


def with_type(item: object) -> object:
    """The item with its type, which messages and references need not say."""
    if not isinstance(item, dict) or item.get("type") is not None:
        return item
    return {**item, "type": "message" if "role" in item else "item_reference"}


Item = InputMessage | FunctionCall | FunctionCallOutput | ReasoningItem
InputItem = Annotated[
    Annotated[Item | ItemReference, Field(discriminator="type")], BeforeValidator(with_type)
]
