"""Chats about PDFs: what the model is shown, how often a document is drawn, what is refused."""

import base64
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from server.fake.processor import FakeProcessor
from server.settings import Settings
from tests.server.media import pdfs
from tests.server.media.pdfs import Page, pdf
from tests.server.requests import CHAT, INFO, chat, image, says, serving
from tests.server.test_errors import check_error
from tests.server.test_files import FILES
from tests.server.test_uploads import official

pytestmark = [pytest.mark.anyio, pytest.mark.extras]

SMALL = Page((60, 80))
WHERE = "messages[0].content[0].file.file_data"


def file(data: bytes, **fields: Any) -> dict[str, Any]:
    url = "data:application/pdf;base64," + base64.b64encode(data).decode()
    return {"type": "file", "file": {"file_data": url, "filename": "a.pdf"} | fields}


class Recording(FakeProcessor):
    """Remembers the conversation that it was to render."""

    def prompt(self, messages: Sequence[Any], *images_and_tools: Any) -> tuple[int, ...]:
        self.messages = messages
        return super().prompt(messages, *images_and_tools)

    def shown(self) -> list[str]:  # type: ignore[override]
        return [part.get("text", "IMAGE") for part in self.messages[-1]["content"]]


async def num_drawn(client: httpx.AsyncClient) -> int:
    """Pages and pictures that were decoded so far."""
    series = (await client.get("/metrics")).text
    found = re.search(r"lookm_media_decode_seconds_count (\S+)", series)
    return int(float(found[1])) if found else 0


async def test_pages_are_images_behind_a_line_each_where_the_file_stands() -> None:
    processor = Recording()
    loading = {"load_processor": lambda: processor}
    async with serving(Settings(model="fake"), says, **loading) as (client, engine, _):
        two = file(pdf([SMALL] * 2))
        answer = await client.post(CHAT, json=chat(two, "what is it?"))
        assert answer.status_code == 200, answer.text
        assert processor.shown() == ["Page 1\n", "IMAGE", "\nPage 2\n", "IMAGE", "what is it?"]
        body = chat("look:", file(pdf([SMALL] * 9), pages="8-9"), image())
        assert (await client.post(CHAT, json=body)).status_code == 200
        assert processor.shown() == ["look:", "\nPage 8\n", "IMAGE", "\nPage 9\n", "IMAGE", "IMAGE"]
        assert [len(request.images) for request in engine.requests] == [2, 3]


async def test_a_second_turn_about_the_same_document_draws_nothing() -> None:
    document = pdf([SMALL] * 3)
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        uploaded = await official(client).files.create(file=("a.pdf", document), purpose="vision")
        body = chat(file(document), "first?")
        assert (await client.post(CHAT, json=body)).status_code == 200
        assert await num_drawn(client) == 3
        body["messages"] += [
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": [{"type": "text", "text": "second?"}]},
        ]
        assert (await client.post(CHAT, json=body)).status_code == 200
        by_id = {"type": "file", "file": {"file_id": uploaded.id}}
        assert (await client.post(CHAT, json=chat(by_id, file(document)))).status_code == 200
        assert await num_drawn(client) == 3
        digests = [[each.digest for each in request.images] for request in engine.requests]
    assert digests[0] == digests[1]
    assert digests[2] == digests[0] * 2


async def test_the_official_client_asks_about_a_file_it_uploaded_whole_and_streamed() -> None:
    async with serving(Settings(model="fake", api_keys="one,two"), says) as (client, engine, _):
        one, two = official(client, "one"), official(client, "two")
        uploaded = await one.files.create(file=("a.pdf", pdf([SMALL] * 2)), purpose="user_data")
        question = {"type": "text", "text": "What is it?"}
        messages: Any = [
            {
                "role": "user",
                "content": [{"type": "file", "file": {"file_id": uploaded.id}}, question],
            }
        ]
        answer = await one.chat.completions.create(model="fake", messages=messages)
        assert answer.choices[0].message.content == "one two three"
        stream = await one.chat.completions.create(model="fake", messages=messages, stream=True)
        told = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        assert "".join(told) == "one two three"
        with pytest.raises(openai.NotFoundError):
            await two.chat.completions.create(model="fake", messages=messages)
        assert [len(request.images) for request in engine.requests] == [2, 2]


async def test_a_document_is_counted_by_tokenize_as_by_a_chat() -> None:
    async with serving(Settings(model="fake"), says) as (client, _, _app):
        body = chat(file(pdf([SMALL] * 2)))
        asked = {name: body[name] for name in ("model", "messages")}
        counted = (await client.post("/tokenize", json=asked)).json()
        assert counted["images"] == [64, 64]
        answer = (await client.post(CHAT, json=body)).json()
        assert answer["usage"]["prompt_tokens"] == counted["count"]


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (pdfs.encrypted(), "invalid_file"),
        (pdf([SMALL] * 20)[:2000], "invalid_file"),
        (pdf([]), "invalid_file"),
        (pdf([SMALL] * 300), "file_too_large"),
    ],
    ids=["encrypted", "truncated", "empty", "300 pages"],
)
async def test_what_cannot_be_shown_is_refused_by_the_name_of_its_part(
    document: bytes, code: str
) -> None:
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        check_error(await client.post(CHAT, json=chat(file(document))), 400, code, WHERE)
        series = (await client.get("/metrics")).text
        assert f'lookm_images_refused_total{{reason="{code}"}} 1.0' in series
        assert not engine.requests
        assert (await client.post(CHAT, json=chat(file(pdf([SMALL]))))).status_code == 200


@pytest.mark.parametrize("pages", ["", "0", "-3", "1-", "1;2", " 1", "1\n", "\u0663", "one"])
async def test_what_names_no_pages_is_told_how_to_name_them(pages: str) -> None:
    async with serving(Settings(model="fake"), says) as (client, _, _app):
        refused = await client.post(CHAT, json=chat(file(pdf([SMALL]), pages=pages)))
        check_error(refused, 400, "invalid_value", WHERE.replace("file_data", "pages"))
        assert "as in '1-3,7'" in refused.json()["error"]["message"]


async def test_no_more_pages_are_drawn_than_a_context_holds() -> None:
    info, settings = replace(INFO, max_context_tokens=256), Settings(model="fake", max_images=300)
    async with serving(settings, says, info=info) as (client, _, _app):
        refused = await client.post(CHAT, json=chat(file(pdf([SMALL] * 300))))
        check_error(refused, 400, "context_length_exceeded", "messages")
        assert await num_drawn(client) <= 256 // 64 + 1 + 2 * 2


async def test_models_say_that_they_take_files() -> None:
    async with serving(Settings(model="fake"), says) as (client, _, _app):
        (first, *_) = (await client.get("/v1/models")).json()["data"]
        assert first["accepts"]["files"] is True
        assert (await client.get(FILES)).json()["data"] == []
