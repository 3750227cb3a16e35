"""A response before it has begun: what was asked for, told back, as OpenAI does in every event.

Knows fields; nothing about what is answered.
"""

import time
from typing import Any

from lookm.models.generation import GenerationDefaults
from server.openai.schemas.response_answers import ResponseAnswer
from server.openai.schemas.responses import FunctionTool, JsonSchemaText, ResponsesRequest


def begun(body: ResponsesRequest, response_id: str, defaults: GenerationDefaults) -> ResponseAnswer:
    """The response to this request, without an answer; `defaults` of what it left open."""
    choice = body.tool_choice or "auto"
    given_tools = body.tools or []
    return ResponseAnswer(
        id=response_id,
        object="response",
        created_at=int(time.time()),
        completed_at=None,
        status="in_progress",
        background=False,
        error=None,
        incomplete_details=None,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        model=body.model,
        output=[],
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        reasoning={"effort": None, "summary": None},
        safety_identifier=body.safety_identifier,
        service_tier="default",
        store=False,
        temperature=_or(body.temperature, defaults.temperature),
        text={"format": _form(body), "verbosity": "medium"},
        tool_choice=choice if isinstance(choice, str) else choice.model_dump(),
        tools=[_tool(tool) for tool in given_tools],
        top_logprobs=body.top_logprobs or 0,
        top_p=_or(body.top_p, defaults.top_p),
        truncation="disabled",
        usage=None,
        user=body.user,
        metadata=body.metadata or {},
    )


def _tool(tool: FunctionTool) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": bool(tool.strict),
    }


def _form(body: ResponsesRequest) -> dict[str, Any]:
    form = body.text.format if body.text else None
    if isinstance(form, JsonSchemaText):
        return {
            "type": "json_schema",
            "name": form.name,
            "description": form.description,
            "schema": form.schema_,
            "strict": bool(form.strict),
        }
    return {"type": form.type if form else "text"}


def _or(given: float | None, default: float) -> float:
    return default if given is None else given
