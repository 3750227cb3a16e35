"""Tool calling through the official client: a random model that is held to the tools' schemas."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.e2e.toy_server import save_toy_with_tools
from tests.server.process import ServerProcess, serving_process
from tests.server.tools.templates import LLAMA, QWEN

pytestmark = pytest.mark.e2e

SIZE = {"enum": ["small", "large"]}
ORDER: Any = {
    "type": "function",
    "function": {
        "name": "order",
        "description": "Orders cups of tea.",
        "parameters": {
            "type": "object",
            "properties": {"cups": {"enum": [1, 2, 3]}, "size": {"$ref": "#/$defs/size"}},
            "required": ["cups", "size"],
            "additionalProperties": False,
            "$defs": {"size": SIZE},
        },
    },
}
CANCEL: Any = {"type": "function", "function": {"name": "cancel"}}
QUESTION: Any = {
    "model": "toy",
    "messages": [{"role": "user", "content": "Two teas, please."}],
    "tools": [ORDER, CANCEL],
    "max_tokens": 400,
    "temperature": 1,
}


STRICT: Any = {**ORDER, "function": ORDER["function"] | {"strict": True}}


@pytest.fixture(scope="module", params=["qwen", pytest.param("llama", marks=pytest.mark.slow)])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("toy")
    save_toy_with_tools(folder, {"qwen": QWEN, "llama": LLAMA}[request.param])
    flags = ("--kv-cache-memory", "64MiB", "--threads", "1", "--served-model-name", "toy")
    with serving_process("--model", str(folder), "--attention", "reference", *flags) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> openai.OpenAI:
    return server.client


def check(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    assert name in ("order", "cancel")
    assert given.keys() == ({"cups", "size"} if name == "order" else set())
    assert name == "cancel" or (given["cups"] in (1, 2, 3) and given["size"] in SIZE["enum"])


@pytest.mark.parametrize("seed", range(2))
def test_required_makes_even_a_random_model_call(client: openai.OpenAI, seed: int) -> None:
    fields: Any = QUESTION | {"tool_choice": "required", "parallel_tool_calls": False}
    choice = client.chat.completions.create(**fields, seed=seed).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or []
    check(call.function.name, call.function.arguments)


def test_a_named_tool_is_called_whole_and_streamed_the_same(client: openai.OpenAI) -> None:
    fields: Any = QUESTION | {"seed": 7, "logprobs": True, "n": 2}
    fields["tool_choice"] = {"type": "function", "function": {"name": "order"}}
    whole = client.chat.completions.create(**fields)
    told: dict[int, Any] = {0: ["", ""], 1: ["", ""]}
    for chunk in client.chat.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            assert not choice.delta.content
            for call in choice.delta.tool_calls or []:
                assert call.index == 0
                told[choice.index][0] += call.function.name or ""
                told[choice.index][1] += call.function.arguments or ""
    for choice in whole.choices:
        (called,) = choice.message.tool_calls or []
        assert choice.finish_reason == "tool_calls"
        assert told[choice.index] == [called.function.name, called.function.arguments]
        check(called.function.name, called.function.arguments)
        spelled = b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content or [])
        assert spelled.startswith((b"<tool_call>\n{", b'{"name": "order", "parameters": {'))


def test_only_an_allowed_tool_is_called(client: openai.OpenAI) -> None:
    listed: Any = {"type": "function", "function": {"name": "cancel"}}
    choice: Any = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [listed]},
    }
    fields: Any = QUESTION | {"tool_choice": choice, "parallel_tool_calls": False}
    (call,) = client.chat.completions.create(**fields).choices[0].message.tool_calls or []
    check(call.function.name, call.function.arguments)
    assert call.function.name == "cancel"


def test_the_clients_own_helper_sees_arguments_grow(client: openai.OpenAI) -> None:
    fields: Any = {**QUESTION, "tools": [STRICT], "tool_choice": "required", "seed": 3}
    with client.chat.completions.stream(**fields, parallel_tool_calls=False) as stream:
        told = list(stream)
        final = stream.get_final_completion().choices[0]
    pieces = [each for each in told if each.type == "tool_calls.function.arguments.delta"]
    (done,) = [each for each in told if each.type == "tool_calls.function.arguments.done"]
    assert len(pieces) > 5
    assert "".join(piece.arguments_delta for piece in pieces) == done.arguments
    (call,) = final.message.tool_calls or []
    assert call.function.parsed_arguments == json.loads(done.arguments)
    assert (call.id, call.function.name, final.finish_reason) == (call.id, "order", "tool_calls")
    check(call.function.name, call.function.arguments)


def test_a_call_that_is_cut_ends_for_length_with_what_came(client: openai.OpenAI) -> None:
    fields: Any = {**QUESTION, "tools": [STRICT], "tool_choice": "required", "seed": 3}
    whole = client.chat.completions.create(**fields).choices[0].message.tool_calls[0].function
    fields["max_tokens"] = len('<tool_call> {"name": "order", "parameters": {"cups')
    chunks = list(client.chat.completions.create(**fields, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    arguments = "".join(call.function.arguments for call in calls)
    assert calls[0].function.name == "order"
    assert whole.arguments.startswith(arguments)
    assert 1 < len(arguments) < len(whole.arguments)
    assert chunks[-1].choices[0].finish_reason == "length"
    again = client.chat.completions.create(**fields).choices[0]
    assert again.message.tool_calls[0].function.arguments == arguments
    assert again.finish_reason == "length"


def test_the_result_of_a_call_goes_back_and_free_text_never_fails(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(
        **QUESTION, tool_choice={"type": "function", "function": {"name": "order"}}
    )
    message = first.choices[0].message
    turns = [*QUESTION["messages"], message.model_dump(exclude_none=True)]
    turns.append(
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Two teas are made."}
    )
    for fields in ({}, {"parallel_tool_calls": False}, {"tool_choice": "none"}):
        body: Any = QUESTION | {"messages": turns, "max_tokens": 40} | fields
        answer = client.chat.completions.create(**body)
        assert answer.choices[0].message.content
        assert answer.usage.prompt_tokens > first.usage.prompt_tokens or "tool_choice" in fields


def test_responses_call_tools_whole_streamed_and_over_turns(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "strict": True, **ORDER["function"]}
    fields: Any = {"model": "toy", "tools": [tool], "max_output_tokens": 400}
    seeded: Any = {"extra_body": {"seed": 3}}
    forced: Any = fields | seeded | {"tool_choice": {"type": "function", "name": "order"}}
    whole = client.responses.create(input="Two teas, please.", **forced)
    (call,) = whole.output
    check(call.name, call.arguments)
    with client.responses.stream(input="Two teas, please.", **forced) as stream:
        told = [event for event in stream if event.type.endswith("arguments.delta")]
        (again,) = stream.get_final_response().output
    assert len(told) > 5
    assert told[-1].snapshot == again.arguments == call.arguments
    assert again.parsed_arguments == json.loads(call.arguments)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Made."}
    then = client.responses.create(
        input=[result], previous_response_id=whole.id, **fields | {"max_output_tokens": 20}
    )
    assert then.usage.input_tokens > whole.usage.input_tokens
    odd: Any = tool | {"parameters": {"type": "object", "propertyNames": {"pattern": "a"}}}
    with pytest.raises(openai.BadRequestError, match="propertyNames") as refused:
        client.responses.create(input="x", model="toy", tools=[odd], tool_choice="required")
    assert refused.value.param == "tools"


def test_a_schema_that_cannot_be_enforced_is_refused(client: openai.OpenAI) -> None:
    parameters = {"type": "object", "propertyNames": {"pattern": "a"}}
    tool: Any = {"type": "function", "function": {"name": "odd", "parameters": parameters}}
    with pytest.raises(openai.BadRequestError, match="propertyNames") as refused:
        client.chat.completions.create(**QUESTION | {"tools": [tool]}, tool_choice="required")
    assert refused.value.param == "tools"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "library"),
    [("langchain_tools", "langchain_openai"), ("pydantic_tools", "pydantic_ai")],
)
def test_a_program_of_another_library_gets_its_call(
    server: ServerProcess, program: str, library: str
) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    command = (sys.executable, "-m", f"tests.e2e.clients.{program}", f"{server.url}/v1")
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    assert "cups" in result.stdout
