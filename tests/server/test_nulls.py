"""What clients echo of earlier answers, also of other servers': null says nothing."""

from typing import Any

import httpx
import pytest

from server.openai.request.template import template_messages
from server.openai.schemas.requests import ChatRequest
from tests.server.requests import CHAT, chat, image, text
from tests.server.test_errors import check_error

pytestmark = pytest.mark.anyio
REFUSAL = {"type": "refusal", "refusal": "I cannot."}


def answered(**fields: Any) -> list[dict[str, Any]]:
    """A conversation in which the assistant's turn has these fields."""
    user = {"role": "user", "content": "hi"}
    return [user, {"role": "assistant", **fields}, user]


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"content": None}, []),
        ({}, []),
        ({"content": None, "refusal": "I cannot."}, ["I cannot."]),
        ({"content": "Yes.", "refusal": None, "reasoning_content": None}, ["Yes."]),
        ({"content": [text("Well."), REFUSAL]}, ["Well.", "I cannot."]),
    ],
)
async def test_earlier_answers_are_taken_as_they_were(
    client: httpx.AsyncClient, fields: dict[str, Any], shown: list[str]
) -> None:
    body = chat(messages=answered(**fields))
    assert (await client.post(CHAT, json=body)).status_code == 200
    messages = ChatRequest.model_validate(body).messages
    turn = template_messages(messages, None, {})[1]
    assert [part["text"] for part in turn["content"]] == shown


async def test_unknown_keys_that_are_null_are_none_at_any_depth(client: httpx.AsyncClient) -> None:
    part = image()
    part["image_url"] |= {"caption": None}
    part |= {"cache_control": None}
    body = chat(part, thinking=None, kv_cache={"method": "full", "more": None})
    assert (await client.post(CHAT, json=body)).status_code == 200
    for wrong in (0, "", False, [], {}):
        answer = await client.post(CHAT, json=chat(thinking=wrong))
        check_error(answer, 400, "unknown_parameter", "thinking")


async def test_a_refusal_is_an_answers_and_white_space_is_no_part_of_an_address(
    client: httpx.AsyncClient,
) -> None:
    answer = await client.post(CHAT, json=chat(REFUSAL))
    check_error(answer, 400, "invalid_value", "messages[0].content[0].type")
    part = image()
    part["image_url"]["url"] = f" \n{part['image_url']['url']}\t "
    assert (await client.post(CHAT, json=chat(part))).status_code == 200
