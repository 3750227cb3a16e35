"""What a client may send about tools: the tools, the choice among them, calls and their results.

Strict as all of `schemas`. `tools.checks` holds what depends on several fields, or on the model.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from server.openai.fields import Accepted, Honoured
from server.openai.strict import OBJECT, STRING, Strict

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

    type: Annotated[Literal["function"], Honoured()]
    function: Annotated[FunctionDefinition, Honoured()]


class ChosenFunction(Strict):
    """The name of one of `tools`."""

    name: Annotated[str, Honoured()]


class NamedChoice(Strict):
    """This tool and no other."""

    type: Annotated[Literal["function"], Honoured()]
    function: Annotated[ChosenFunction, Honoured()]


ToolChoice = Annotated[Literal["none", "auto", "required"], STRING] | Annotated[NamedChoice, OBJECT]


class CalledFunction(Strict):
    """What was called, and with what."""

    name: Annotated[ToolName, Honoured()]
    arguments: Annotated[str, Honoured("a JSON object, as text")]


class ToolCall(Strict):
    """A call in an earlier answer."""

    id: Annotated[Annotated[str, Field(min_length=1, max_length=256)], Honoured()]
    type: Annotated[Literal["function"], Honoured()]
    function: Annotated[CalledFunction, Honoured()]
    index: Annotated[int | None, Accepted("left over from a stream")] = None


Tools = Annotated[list[Tool], Field(max_length=128)]
