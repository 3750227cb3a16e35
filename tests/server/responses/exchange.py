"""What the tests of `/v1/responses` send, and a reader of streams that lets nothing odd pass."""

import json
from typing import Any

import httpx
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.server.tools import scripted_model

RESPONSES = "/v1/responses"
TERMINAL = ("response.completed", "response.incomplete", "response.failed")
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def flat(tool: dict[str, Any]) -> dict[str, Any]:
    """A chat's tool as `/v1/responses` takes it."""
    return {"type": tool["type"], **tool["function"]}


WEATHER, CLOCK = flat(scripted_model.WEATHER), flat(scripted_model.CLOCK)


def asking(given: Any = "hello there", **fields: Any) -> dict[str, Any]:
    """A body: `given` as its input."""
    return {"model": "fake", "input": given, "max_output_tokens": 4} | fields


def user(*parts: Any) -> dict[str, Any]:
    """A turn of the user: strings are text, what begins with `data:` an image."""
    return {"role": "user", "content": [_part(part) for part in parts]}


def _part(part: Any) -> Any:
    if not isinstance(part, str):
        return part
    if part.startswith("data:"):
        return {"type": "input_image", "image_url": part, "detail": "auto"}
    return {"type": "input_text", "text": part}


async def whole(client: httpx.AsyncClient, body: dict[str, Any], status: int = 200) -> Any:
    """The response, which is one to the official client, too; or the error."""
    response = await client.post(RESPONSES, json=body)
    assert response.status_code == status, response.text
    if status == 200:
        Response.model_validate(response.json())
        return response.json()
    return response.json()["error"]


async def streamed(client: httpx.AsyncClient, body: dict[str, Any]) -> list[Any]:
    """The events of a stream, after `checked`."""
    response = await client.post(RESPONSES, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    return checked(response.text)


def checked(text: str) -> list[Any]:
    """The events, in the one order that there is: see `response_writer` and `output_items`."""
    told = []
    for frame in text.strip().split("\n\n"):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        told.append(event)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [event["type"] for event in told[:2]] == ["response.created", "response.in_progress"]
    assert [event["type"] in TERMINAL for event in told] == [False] * (len(told) - 1) + [True]
    output = _items(told[2:-1])
    if told[-1]["type"] != "response.failed":
        assert told[-1]["response"]["output"] == output
    return told


def _items(told: list[Any]) -> list[Any]:
    """What the events between make: each item opened, written and closed before the next."""
    output: list[Any] = []
    item: Any = None
    text = ""
    for event in told:
        kind = event["type"].removeprefix("response.")
        assert event["output_index"] == len(output)
        if kind == "output_item.added":
            assert item is None
            item, text = event["item"], ""
            assert item["status"] == "in_progress"
            continue
        if kind == "output_item.done":
            assert event["item"]["id"] == item["id"]
            output.append(event["item"])
            item = None
            continue
        assert event["item_id"] == item["id"]
        if kind.endswith(".delta"):
            assert event["delta"]
            text += event["delta"]
        elif kind.startswith("content_part"):
            assert event["part"]["text"] == text
        else:
            assert event.get("text", event.get("arguments")) == text
    return output


def kinds(told: list[Any]) -> list[str]:
    """The events' types, each once where it comes again and again."""
    names = [event["type"].removeprefix("response.") for event in told]
    return [name for n, name in enumerate(names) if n == 0 or name != names[n - 1]]


def without_ids(value: Any) -> Any:
    """The JSON value without what differs from one request to the next."""
    if isinstance(value, dict):
        made = ("id", "call_id", "created_at", "completed_at", "previous_response_id")
        return {name: without_ids(each) for name, each in value.items() if name not in made}
    return [without_ids(each) for each in value] if isinstance(value, list) else value
