"""What a client may send about tools: the tools, the choice among them, calls and their results.

Strict as all of `schemas`. `tools.checks` holds what depends on several fields, or on the model.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from server.openai.schemas.fields import Accepted, Honoured
from server.openai.schemas.strict import OBJECT, STRING, Strict


def not_custom(kind: object) -> object:
    """The type of a tool. Custom ones are documented by OpenAI, and so refused with a reason."""
    if kind == "custom":
        raise PydanticCustomError(
            "unsupported_parameter", "Custom tools are not: give tools of type 'function'."
        )
    return kind


ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionDefinition(Strict):
    """A function that the model may call."""

    name: Annotated[ToolName, Honoured()]
    description: Annotated[str | None, Honoured()] = None
    parameters: Annotated[
        dict[str, Any] | None, Honoured("a JSON schema of an object; none: no arguments")
    ] = None
    strict: Annotated[
        bool | None, Honoured("one strict tool: every call keeps to its tool's schema")
    ] = None


class Tool(Strict):
    """One of `tools`."""

    type: Annotated[Literal["function"], BeforeValidator(not_custom), Honoured()]
    function: Annotated[FunctionDefinition, Honoured()]


class ChosenFunction(Strict):
    """The name of one of `tools`."""

    name: Annotated[str, Honoured()]


class NamedChoice(Strict):
    """This tool and no other."""

    type: Annotated[Literal["function"], Honoured()]
    function: Annotated[ChosenFunction, Honoured()]


class AllowedTools(Strict):
    """Some of `tools`, by name, and whether one of them must be called."""

    mode: Annotated[Literal["auto", "required"], Honoured()]
    tools: Annotated[list[NamedChoice], Field(min_length=1, max_length=128), Honoured()]


class AllowedChoice(Strict):
    """These tools and no others."""

    type: Annotated[Literal["allowed_tools"], Honoured()]
    allowed_tools: Annotated[AllowedTools, Honoured()]


ToolChoice = (
    Annotated[Literal["none", "auto", "required"], STRING]
    | Annotated[Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")], OBJECT]
)


class CalledFunction(Strict):
    """What was called, and with what."""

    name: Annotated[ToolName, Honoured()]
    arguments: Annotated[str, Honoured("a JSON object, as text; any other text is shown as it is")]


class ToolCall(Strict):
    """A call in an earlier answer."""

    id: Annotated[Annotated[str, Field(min_length=1, max_length=256)], Honoured()]
    type: Annotated[Literal["function"], Honoured()]
    function: Annotated[CalledFunction, Honoured()]
    index: Annotated[int | None, Accepted("left over from a stream")] = None


Tools = Annotated[list[Tool], Field(max_length=128)]
