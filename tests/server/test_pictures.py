"""Parts of messages become pictures: in their order, loaded once, any number from each part."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from lookm.types import ImageInput
from server.fake.processor import IMAGE_TOKENS, FakeProcessor
from server.media import LoadedImage
from server.openai.request.media_parts import MediaPart, distinct, media_parts
from server.openai.request.pictures import Picture
from server.openai.request.template import template_messages
from server.openai.schemas.requests import ChatRequest
from server.settings import Settings
from tests.server.requests import CHAT, INFO, chat, data_url, image, png, says, serving, text

pytestmark = pytest.mark.anyio

CONVERSATION = [
    {"role": "developer", "content": "be brief"},
    {"role": "user", "content": [text("a"), image("data:1"), text("b"), image("data:2")]},
    {"role": "assistant", "content": [image("data:3"), text("c")]},
    {"role": "user", "content": [image("data:1"), text("d")]},
]


def test_images_and_text_keep_their_order_in_every_turn() -> None:
    body = ChatRequest.model_validate({"model": "m", "messages": CONVERSATION})
    parts = media_parts(body.messages)
    picture = Picture(ImageInput("0", {}, 1))
    template = template_messages(body.messages, None, {part.place: (picture,) for part in parts})
    shown = [
        (message["role"], [part.get("text", "IMAGE") for part in message["content"]])
        for message in template
    ]
    assert shown == [
        ("system", ["be brief"]),
        ("user", ["a", "IMAGE", "b", "IMAGE"]),
        ("assistant", ["IMAGE", "c"]),
        ("user", ["IMAGE", "d"]),
    ]
    assert [part.url for part in parts] == ["data:1", "data:2", "data:3", "data:1"]
    assert parts[1].param == "messages[1].content[3].image_url.url"


async def test_images_reach_the_engine_in_order_and_repeated_ones_are_loaded_once() -> None:
    urls = [data_url(png(colour)) for colour in ("red", "green", "blue")]
    parts = [image(urls[0]), image(urls[1]), "x", image(urls[2]), image(urls[0])]
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        assert (await client.post(CHAT, json=chat(*parts))).status_code == 200
        digests = [each.digest for each in engine.requests[0].images]
        metrics = (await client.get("/metrics")).text
    assert digests[0] == digests[3]
    assert len(set(digests)) == 3
    assert "lookm_media_preprocess_seconds_count 3.0" in metrics


async def test_no_more_pictures_are_prepared_than_a_context_holds() -> None:
    info = replace(INFO, max_context_tokens=3 * IMAGE_TOKENS)
    pictures = [image(data_url(png(size=(8, 8 + n)))) for n in range(20)]
    async with serving(Settings(model="fake"), says, info=info) as (client, engine, _):
        for _ in range(2):  # the second time the first ones are known
            refused = await client.post(CHAT, json=chat(*pictures))
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert not engine.requests
        metrics = (await client.get("/metrics")).text
        (count,) = re.findall(r"lookm_media_preprocess_seconds_count (\S+)", metrics)
        assert float(count) <= 3 + 1 + 2 * 2  # each of two threads may have begun another
        assert (await client.post(CHAT, json=chat(*pictures[:2]))).status_code == 200


def test_equal_urls_are_one_and_alike_ones_are_not() -> None:
    urls = ["x" + "y" * 99, "z" + "y" * 99, "x" + "y" * 99, "short"]
    parts = [MediaPart((0, n), str(n), url) for n, url in enumerate(urls)]
    unique, places = distinct(parts)
    assert [part.param for part in unique] == ["0", "1", "3"]
    assert places == [0, 1, 0, 2]


class Pages:
    """An image loader for which every URL is a document: `data:3` has three pages."""

    held_bytes = 0

    async def load_all(
        self,
        urls: Sequence[str],
        params: Sequence[str | None],
        use: Callable[[LoadedImage], Awaitable[Any]],
        known: Callable[[str], Any],
    ) -> list[list[Any]]:
        return [
            [await use(page(url, n, param)) for n in range(int(url[-1]))]
            for url, param in zip(urls, params, strict=True)
        ]

    async def aclose(self) -> None:
        pass


def page(url: str, number: int, param: str | None) -> LoadedImage:
    picture = Image.new("RGB", (8, 8))
    label = f"Page {number + 1}"
    return LoadedImage(picture, f"{url}/{number}", 8, 8, 9, 0.0, 0.1, label, param)


class Recording(FakeProcessor):
    """Remembers the conversation that it was to render."""

    def prompt(self, messages: Sequence[Any], *images_and_tools: Any) -> tuple[int, ...]:
        self.messages = messages
        return super().prompt(messages, *images_and_tools)


async def test_each_picture_of_a_part_follows_its_label_where_the_part_stands() -> None:
    processor = Recording()
    parts = {"media": Pages(), "load_processor": lambda: processor}
    async with serving(Settings(model="fake"), says, **parts) as (client, engine, _):
        body = chat("a", image("data:2"), "b", image("data:1"), image("data:2"))
        assert (await client.post(CHAT, json=body)).status_code == 200
        digests = [each.digest for each in engine.requests[0].images]
    shown = [part.get("text", "IMAGE") for part in processor.messages[0]["content"]]
    one, two = "\nPage 1\n", "\nPage 2\n"
    pages = [one, "IMAGE", two, "IMAGE"]
    assert shown == ["a", *pages, "b", one, "IMAGE", *pages]
    assert digests == ["data:2/0", "data:2/1", "data:1/0", "data:2/0", "data:2/1"]


@pytest.mark.parametrize(("max_images", "status"), [(5, 200), (4, 400)])
async def test_the_bound_on_images_counts_pictures_and_not_parts(
    max_images: int, status: int
) -> None:
    settings = Settings(model="fake", max_images=max_images)
    async with serving(settings, says, media=Pages()) as (client, _, _app):
        body = chat(image("data:2"), image("data:1"), image("data:2"))
        response = await client.post(CHAT, json=body)
    assert response.status_code == status
    if status == 400:
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "messages")
        assert "5 images; 4 are allowed" in error["message"]
