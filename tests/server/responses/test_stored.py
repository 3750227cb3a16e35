"""Responses that are kept: going on from them, asking for them, and for how long they are there."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from lookm.types import Request, TokenEvent
from server.settings import Settings
from tests.server.requests import CHAT, begins, chat, data_url, image, png, says, serving, until
from tests.server.responses.exchange import RESPONSES, asking, streamed, user, whole
from tests.server.tools.scripted_model import ToolProcessor, calling

pytestmark = pytest.mark.anyio

ALICE = {"authorization": "Bearer alice"}
BOB = {"authorization": "Bearer bob"}


async def refused(client: httpx.AsyncClient, body: dict[str, Any], **headers: str) -> Any:
    response = await client.post(RESPONSES, json=body, headers=headers)
    assert response.status_code == 404
    return response.json()["error"]


async def test_a_chain_of_responses_is_the_chat_written_out() -> None:
    """With images, streamed in between; instructions are of one response alone."""
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        first = await whole(client, asking([user(data_url(), "Which?")], instructions="Be brief."))
        told = await streamed(client, asking("And?", previous_response_id=first["id"]))
        second = told[-1]["response"]
        assert second["previous_response_id"] == first["id"]
        blue = data_url(png("blue"))
        await whole(client, asking([user(blue)], previous_response_id=second["id"]))
        answered = {"role": "assistant", "content": "one two three"}
        turns = [
            *chat(image(), "Which?")["messages"], answered,
            *chat("And?")["messages"], answered,
            *chat(image(blue))["messages"],
        ]  # fmt: skip
        await client.post(CHAT, json=chat(messages=turns))
        third, written_out = engine.requests[-2:]
    assert third.prompt_ids == written_out.prompt_ids
    assert [each.digest for each in third.images] == [each.digest for each in written_out.images]


async def test_calls_are_answered_by_their_ids_alone() -> None:
    processor = ToolProcessor()
    tools = [{"type": "function", "name": "get_time"}]
    called = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    async with calling(called, processor=processor) as (client, *_):
        first = await whole(client, asking("When?", tools=tools))
        (call,) = first["output"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Noon."}
        after = {"previous_response_id": first["id"], "tools": tools}
        await whole(client, asking([result], **after))
        prompt = processor.prompts[-1]
        wrong = await whole(client, asking([result | {"call_id": "x"}], **after), status=400)
    places = [prompt.rindex(each) for each in ("When?", '"get_time"', "Noon.")]
    assert places == sorted(places)
    assert (wrong["code"], wrong["param"]) == ("invalid_value", "input[0].call_id")


async def test_items_of_stored_responses_may_be_named() -> None:
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        first = await whole(client, asking("Hi."))
        again = [{"id": first["output"][0]["id"]}, user("And?")]
        await whole(client, asking([user("Hi."), *again]))
        await whole(client, asking("And?", previous_response_id=first["id"]))
        assert engine.requests[-1].prompt_ids == engine.requests[-2].prompt_ids
        error = await refused(client, asking([{"type": "item_reference", "id": "msg_x"}]))
    assert (error["code"], error["param"]) == ("response_not_found", "input[0].id")


async def test_a_stored_response_is_given_as_it_was_answered_and_can_be_deleted() -> None:
    async with serving(Settings(model="fake"), says) as (client, *_):
        answer = await whole(client, asking())
        told = (await streamed(client, asking()))[-1]["response"]
        for each in (answer, told):
            address = f"{RESPONSES}/{each['id']}"
            assert (await client.get(address)).json() == each
            assert (await client.get(address, params={"stream": "true"})).status_code == 400
            gone = await client.delete(address)
            assert gone.json() == {"id": each["id"], "object": "response", "deleted": True}
            for response in (await client.get(address), await client.delete(address)):
                assert response.status_code == 404
                assert response.json()["error"]["code"] == "response_not_found"
        error = await refused(client, asking(previous_response_id=answer["id"]))
    assert error["param"] == "previous_response_id"


async def test_one_that_goes_on_keeps_what_came_before_it() -> None:
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        first = await whole(client, asking("Hi."))
        second = await whole(client, asking("And?", previous_response_id=first["id"]))
        await client.delete(f"{RESPONSES}/{first['id']}")
        await whole(client, asking("So?", previous_response_id=second["id"]))
        assert len(engine.requests[-1].prompt_ids) == 1 + 3 + 1 + 3 + 1


@pytest.mark.parametrize("settings", [{}, {"response_store_memory": 0}])
async def test_what_is_not_stored_is_not_there(settings: dict[str, int]) -> None:
    async with serving(Settings(model="fake", **settings), says) as (client, _, app):
        body = asking() if settings else asking(store=False)
        answer = await whole(client, body)
        told = (await streamed(client, body))[-1]["response"]
        for each in (answer, told):
            assert each["store"] is False
            assert (await client.get(f"{RESPONSES}/{each['id']}")).status_code == 404
            await refused(client, asking(previous_response_id=each["id"]))
        assert app.state.services.responses.held_bytes == 0


async def test_another_keys_responses_are_not_there() -> None:
    settings = Settings(model="fake", api_keys="alice,bob", prompt_store_shared=True)
    async with serving(settings, says) as (client, *_):
        answer = (await client.post(RESPONSES, json=asking(), headers=ALICE)).json()
        address = f"{RESPONSES}/{answer['id']}"
        for path in (address, f"{address}/input_items"):
            assert (await client.get(path, headers=ALICE)).status_code == 200
            assert (await client.get(path, headers=BOB)).status_code == 404
        assert (await client.delete(address, headers=BOB)).status_code == 404
        await refused(client, asking(previous_response_id=answer["id"]), **BOB)
        await refused(client, asking([{"id": answer["output"][0]["id"]}]), **BOB)
        unknown = (await client.get(f"{RESPONSES}/resp_x", headers=BOB)).json()["error"]
        theirs = (await client.get(address, headers=BOB)).json()["error"]
        assert unknown["message"].replace("resp_x", answer["id"]) == theirs["message"]
        assert (await client.get(address)).status_code == 401
        assert (await client.delete(address, headers=ALICE)).status_code == 200


async def test_the_least_recently_used_go_where_there_is_no_room() -> None:
    settings = Settings(model="fake", response_store_memory=40_000)
    async with serving(settings, says) as (client, _, app):
        store = app.state.services.responses
        first = await whole(client, asking("x" * 5000))
        second = await whole(client, asking("y" * 5000))
        for _ in range(8):  # the first is asked for again and again, and so stays
            assert (await client.get(f"{RESPONSES}/{first['id']}")).status_code == 200
            await whole(client, asking("z" * 5000))
            assert store.held_bytes <= 40_000
        assert 1 < len(store) < 8
        assert (await client.get(f"{RESPONSES}/{second['id']}")).status_code == 404
        large = await whole(client, asking("w" * 50_000))
        assert large["store"] is False
        assert store.held_bytes <= 40_000


async def test_a_chain_takes_no_more_room_than_what_it_is_made_of() -> None:
    async with serving(Settings(model="fake"), says) as (client, _, app):
        store = app.state.services.responses
        answer = await whole(client, asking([user(data_url(png(size=(400, 400))), "x" * 20_000)]))
        begun = store.held_bytes
        for _ in range(10):
            answer = await whole(client, asking("And?", previous_response_id=answer["id"]))
        assert store.held_bytes - begun < 10 * 10_000
        assert begun > 20_000


async def test_what_is_being_answered_is_held_until_it_ends_or_its_client_leaves() -> None:
    async with serving(Settings(model="fake"), begins) as (client, engine, app):
        store = app.state.services.responses
        waiting = asyncio.create_task(client.post(RESPONSES, json=asking("x" * 5000)))
        await until(lambda: engine.open == 1)
        assert store.held_bytes > 5000
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: engine.open == 0)
        await until(lambda: store.held_bytes == 0)
        assert len(store) == 0


async def test_a_request_that_fails_leaves_nothing() -> None:
    async def breaks(_: Request) -> AsyncIterator[TokenEvent]:
        raise KeyError("x")
        yield

    async with serving(Settings(model="fake"), breaks) as (client, _, app):
        for stream in (False, True):
            response = await client.post(RESPONSES, json=asking(stream=stream))
            assert response.status_code == 500
            assert response.json()["error"]["code"] == "internal_error"
        assert app.state.services.responses.held_bytes == 0


async def test_input_items_are_listed_page_by_page_the_newest_first() -> None:
    async with serving(Settings(model="fake"), says) as (http, *_):
        client = openai.AsyncOpenAI(base_url="http://test/v1", api_key="any", http_client=http)
        given: Any = [user(data_url(), "Which?"), {"role": "system", "content": "Be brief."}]
        first = await client.responses.create(model="fake", input=given)
        then = await client.responses.create(
            model="fake", input="And?", previous_response_id=first.id
        )
        listed = [item async for item in client.responses.input_items.list(then.id, limit=1)]
        roles = [item.role for item in listed]
        assert roles == ["user", "assistant", "system", "user"]
        assert len({item.id for item in listed}) == 4
        ordered = client.responses.input_items.list(
            then.id, order="asc", include=["message.input_image.image_url"]
        )
        items = [item async for item in ordered]
        assert [item.id for item in items] == [item.id for item in reversed(listed)]
        assert items[0].content[0].image_url == data_url()
        assert listed[-1].content[0].image_url is None
        assert items[2].content[0].text == "one two three"
        for wrong in ({"limit": 0}, {"limit": 101}, {"after": "x"}, {"order": "up"}):
            with pytest.raises(openai.BadRequestError) as caught:
                await client.responses.input_items.list(then.id, **wrong)
            assert caught.value.param == next(iter(wrong))
