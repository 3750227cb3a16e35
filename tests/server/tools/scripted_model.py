"""A model that can use tools, without one: a real chat template, and an engine with a script."""

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lookm.errors import RequestError
from lookm.types import FinishReason, Request, TokenEvent
from server.fake.processor import FakeProcessor
from server.settings import Settings
from tests.server.requests import CHAT, serving, word_events
from tests.server.tools.templates import QWEN

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a town.",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string"}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time"}}
TOOLS = [WEATHER, CLOCK]


def tag(name: str = "get_weather", **arguments: Any) -> str:
    """A call as Qwen writes it."""
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>"


class ToolProcessor(FakeProcessor):
    """The fake one with a chat template; it remembers what it rendered."""

    def __init__(self, template: str = QWEN) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        environment.globals["raise_exception"] = _refuse
        self._template = environment.from_string(template)
        self.prompts: list[str] = []

    def rendered(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        try:
            return self._template.render(
                messages=messages, tools=list(tools) or None, add_generation_prompt=True
            )
        except TemplateError as error:
            raise RequestError(str(error), param="messages") from error

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[int, ...]:
        self.prompts.append(self.rendered(messages, tools))
        return self.text(self.prompts[-1])


def _refuse(message: str) -> None:
    raise TemplateError(message)


def writes(
    *pieces: str, finish: FinishReason = "stop"
) -> Callable[[Request], AsyncIterator[TokenEvent]]:
    """A script: the answer in these pieces."""

    async def script(request: Request) -> AsyncIterator[TokenEvent]:
        for event in word_events(request, pieces):
            yield replace(event, finish=event.finish and finish)

    return script


def calling(
    *pieces: str, processor: ToolProcessor | None = None, finish: FinishReason = "stop"
) -> AbstractAsyncContextManager[Any]:
    """A server whose model says `pieces`."""
    load, script = processor or ToolProcessor(), writes(*pieces, finish=finish)
    return serving(Settings(model="fake"), script, load_processor=lambda: load)


async def ask(client: Any, status: int = 200, **fields: Any) -> Any:
    """The answer to a question with tools."""
    body = {"model": "fake", "messages": [{"role": "user", "content": "Rain?"}], "tools": TOOLS}
    response = await client.post(CHAT, json=body | fields)
    assert response.status_code == status, response.text
    return response.json() if not fields.get("stream") else response.text


def only(*names: str, mode: str = "auto") -> dict[str, Any]:
    """The tool choice that allows these."""
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def joined(chunks: list[Any]) -> tuple[str, list[list[str]], str]:
    """What a client makes of a stream: content, name and arguments of each call, how it ended."""
    content, calls, finish = "", [], ""
    for choice in (chunk["choices"][0] for chunk in chunks):
        content += choice["delta"].get("content") or ""
        finish = choice["finish_reason"] or finish
        for call in choice["delta"].get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(calls)
                calls.append([call["function"]["name"], ""])
            calls[call["index"]][1] += call["function"]["arguments"]
    return content, calls, finish
