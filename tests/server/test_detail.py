"""How finely an image is seen: what a part asks for reaches the processor, the shelf, the usage."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lookm.models.detail import Detail
from lookm.models.image_layouts import NUM_TOKENS
from lookm.types import ImageInput
from server.fake.processor import IMAGE_TOKEN_ID, FakeProcessor
from server.openai.request.image_cache import ImageCache
from server.settings import Settings
from tests.server.media import clips
from tests.server.media.pdfs import Page, pdf
from tests.server.requests import CHAT, INFO, chat, data_url, events, png, says, serving

pytestmark = pytest.mark.anyio

FEWEST = 4
FULL = 64


def part(url: str | None = None, **asked: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url or data_url(), **asked}}


class Dial(FakeProcessor):
    """Images of 64 tokens, of 16 in low detail, or of as many as a budget allows. Among others an
    image takes at most 32."""

    fewest_image_tokens = FEWEST

    def __init__(self) -> None:
        self.asked: list[Detail] = []

    def image(
        self, image: Any, digest: str, sent: Any = None, detail: Detail | None = None
    ) -> ImageInput:
        detail = detail or Detail()
        self.asked.append(detail)
        own = 16 if detail.level == "low" else FULL
        num_tokens = min(own, detail.max_tokens or own)
        if num_tokens % 2:
            raise detail.refusal(num_tokens + 1, "this image")
        name = digest if num_tokens == FULL else f"{digest}/{num_tokens}"
        among = np.asarray(min(num_tokens, FULL // 2))
        return ImageInput(name, {"x": np.zeros(4), NUM_TOKENS: among}, num_tokens)

    def tokens_per_image(self, images: Sequence[ImageInput]) -> tuple[int, ...]:
        most = FULL if len(images) == 1 else FULL // 2
        return tuple(min(most, image.num_tokens) for image in images)

    def prompt(self, messages: Any, images: Sequence[ImageInput], tools: Any = ()) -> Any:
        return (7, *([IMAGE_TOKEN_ID] * sum(self.tokens_per_image(images))), 8)


def dial(**more: Any) -> tuple[Dial, Any]:
    processor = Dial()
    return processor, serving(
        Settings(model="fake"), says, load_processor=lambda: processor, **more
    )


async def test_each_image_is_seen_in_the_detail_of_its_part() -> None:
    urls = [data_url(png(colour)) for colour in ("red", "green", "blue", "black", "white")]
    asked = [
        {"detail": "low"}, {"detail": None}, {"detail": "original"}, {"max_tokens_per_image": 6},
        {"detail": "low", "max_tokens_per_image": 8},
    ]  # fmt: skip
    parts = [part(url, **each) for url, each in zip(urls, asked, strict=True)]
    processor, server = dial()
    async with server as (client, engine, _):
        answer = (await client.post(CHAT, json=chat(*parts, "?"))).json()
    assert sorted(map(str, processor.asked)) == sorted(
        map(str, [Detail("low"), Detail(), Detail("high"), Detail("auto", 6), Detail("low", 8)])
    )
    assert [each.num_tokens for each in engine.requests[0].images] == [16, 64, 64, 6, 8]
    details = answer["usage"]["prompt_tokens_details"]
    assert details["tokens_per_image"] == [16, 32, 32, 6, 8]


async def test_one_image_in_two_details_is_two_images_and_is_shelved_as_two() -> None:
    url = data_url(png("red"))
    processor, server = dial()
    async with server as (client, engine, _):
        for _ in range(2):
            body = chat(part(url), part(url, detail="low"), part(url), part(url, detail="low"))
            assert (await client.post(CHAT, json=body)).status_code == 200
        low = chat(part(url, detail="low"))
        assert (await client.post(CHAT, json=low)).status_code == 200
        first, again, alone = engine.requests
    digest = hashlib.sha256(png("red")).hexdigest()
    assert [each.digest for each in first.images] == [digest, f"{digest}/16"] * 2
    assert [each.digest for each in again.images] == [each.digest for each in first.images]
    assert [each.digest for each in alone.images] == [f"{digest}/16"]
    assert sorted(each.name for each in processor.asked) == ["", "low"], "each was made once"


async def test_known_images_are_not_decoded_again_where_details_mix() -> None:
    body = chat(part(data_url(png("red"))), part(data_url(png("blue")), detail="low"))
    _, server = dial()
    async with server as (client, engine, _):
        for _ in range(2):
            assert (await client.post(CHAT, json=body)).status_code == 200
        metrics = (await client.get("/metrics")).text
    assert "lookm_media_decode_seconds_count 2.0" in metrics
    assert engine.requests[0].images == engine.requests[1].images


async def test_a_digest_names_an_image_in_the_detail_it_was_sent_in() -> None:
    data = png("red")
    name = "sha256:" + hashlib.sha256(data).hexdigest()
    processor, server = dial()
    async with server as (client, engine, _):
        assert (await client.post(CHAT, json=chat(part(name)))).status_code == 404
        sent = chat(part(data_url(data), detail="low"))
        assert (await client.post(CHAT, json=sent)).status_code == 200
        assert (await client.post(CHAT, json=chat(part(name, detail="low")))).status_code == 200
        missing = await client.post(CHAT, json=chat(part(name, detail="high")))
        assert missing.json()["error"]["code"] == "image_not_found"
        assert "in this detail" in missing.json()["error"]["message"]
        assert (await client.post(CHAT, json=chat(part(data_url(data))))).status_code == 200
        roomy = chat(part(name, max_tokens_per_image=FULL))
        assert (await client.post(CHAT, json=roomy)).status_code == 200
        tight = chat(part(name, max_tokens_per_image=FULL - 1))
        assert (await client.post(CHAT, json=tight)).status_code == 404
    assert [each.images[0].num_tokens for each in engine.requests] == [16, 16, FULL, FULL]
    assert len(processor.asked) == 2


@pytest.mark.extras
@pytest.mark.parametrize("kind", ["file", "video_url"])
async def test_pages_and_frames_are_seen_in_the_detail_of_their_part(kind: str) -> None:
    def several(**asked: Any) -> dict[str, Any]:
        if kind == "file":
            return {"type": kind, kind: {"file_data": data_url(pdf([Page((60, 80))] * 2)), **asked}}
        return {"type": kind, kind: {"url": clips.url(clips.clip()), "max_frames": 2, **asked}}

    mixed = chat(several(), several(detail="low"), several(max_tokens_per_image=8))
    processor, server = dial()
    async with server as (client, engine, _):
        for _ in range(2):
            assert (await client.post(CHAT, json=mixed)).status_code == 200
            counts = [each.num_tokens for each in engine.requests[-1].images]
            assert counts == [64, 64, 16, 16, 8, 8]
        assert len(processor.asked) == 6
        odd = await client.post(CHAT, json=chat(several(max_tokens_per_image=7)))
        few = await client.post(CHAT, json=chat(several(max_tokens_per_image=FEWEST - 1)))
    for refused in (odd, few):
        error = refused.json()["error"]
        assert error["param"] == f"messages[0].content[0].{kind}.max_tokens_per_image"


@pytest.mark.extras
async def test_by_itself_a_video_in_low_detail_takes_more_frames() -> None:
    url = clips.url(clips.clip())
    _, server = dial(info=replace(INFO, max_context_tokens=2 * FULL))
    async with server as (client, engine, _):
        for asked in ({}, {"detail": "low"}):
            part = {"type": "video_url", "video_url": {"url": url, **asked}}
            assert (await client.post(CHAT, json=chat(part))).status_code == 200
    assert [len(each.images) for each in engine.requests] == [3, 6]


class NoMedia:
    """Fails where an image is fetched at all."""

    held_bytes = 0

    async def load_all(self, *_: Any) -> Any:
        raise AssertionError("fetched")

    async def aclose(self) -> None:
        pass


async def test_a_budget_that_no_image_keeps_to_is_refused_before_one_is_fetched() -> None:
    _, server = dial(media=NoMedia())
    async with server as (client, engine, _):
        body = chat("x", part(), part(max_tokens_per_image=FEWEST - 1))
        refused = await client.post(CHAT, json=body)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("invalid_value", "invalid_request_error")
    assert error["param"] == "messages[0].content[2].image_url.max_tokens_per_image"
    assert f"every image of this model takes at least {FEWEST} tokens" in error["message"]
    assert not engine.requests


async def test_a_budget_that_this_image_does_not_keep_to_is_refused_by_its_name() -> None:
    _, server = dial()
    async with server as (client, engine, _):
        refused = await client.post(CHAT, json=chat(part(max_tokens_per_image=7), part()))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "invalid_value")
    assert error["param"] == "messages[0].content[0].image_url.max_tokens_per_image"
    assert "allow 8 or more" in error["message"]
    assert not engine.requests


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("detail", "medium"),
        ("detail", 1),
        ("max_tokens_per_image", 0),
        ("max_tokens_per_image", -5),
        ("max_tokens_per_image", "64"),
        ("max_tokens_per_image", 1.5),
        ("max_tokens_per_image", 2**40),
    ],
)
async def test_what_is_no_detail_is_refused(field: str, value: Any) -> None:
    _, server = dial(media=NoMedia())
    async with server as (client, _, _app):
        refused = await client.post(CHAT, json=chat(part(**{field: value})))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == f"messages[0].content[0].image_url.{field}"


@pytest.mark.parametrize("num_choices", [1, 2])
async def test_usage_has_the_tokens_of_each_image_streamed_and_whole(num_choices: int) -> None:
    body = chat(part(detail="low"), part(data_url(png("blue"))), n=num_choices)
    _, server = dial()
    async with server as (client, _, _app):
        whole = (await client.post(CHAT, json=body)).json()["usage"]
        streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
        last = events((await client.post(CHAT, json=streamed)).text)[-1]["usage"]
        none = (await client.post(CHAT, json=chat("text"))).json()["usage"]
        counted = await client.post("/tokenize", json={k: body[k] for k in ("model", "messages")})
    for usage in (whole, last):
        assert usage["prompt_tokens_details"]["tokens_per_image"] == [16, 32]
    assert "tokens_per_image" not in none["prompt_tokens_details"]
    assert counted.json()["images"] == [16, 32]


async def test_images_fill_the_context_as_their_detail_and_their_layout_have_it() -> None:
    """Four of 64 tokens alone and 32 among others; in a context of three of 64."""
    _, server = dial(info=replace(INFO, max_context_tokens=3 * FULL))
    colours = ("red", "green", "blue", "black", "white", "grey", "pink")
    urls = [data_url(png(colour)) for colour in colours]
    async with server as (client, _, _app):
        four = await client.post(CHAT, json=chat(*map(part, urls[:4])))
        assert four.status_code == 200
        seven = await client.post(CHAT, json=chat(*map(part, urls)))
        assert seven.json()["error"]["code"] == "context_length_exceeded"
        low = chat(*(part(url, detail="low") for url in urls))
        assert (await client.post(CHAT, json=low)).status_code == 200


def test_the_shelf_counts_what_it_holds_under_two_names() -> None:
    cache = ImageCache(100)
    plain = ImageInput("a" * 64, {"x": np.zeros(40, np.uint8)}, 9)
    cache.put(plain, "a" * 64, Detail("high"))
    assert cache.get("a" * 64) is plain
    assert cache.get("a" * 64, Detail("high")) is plain
    assert cache.get("a" * 64, Detail("low")) is None
    assert cache.get("a" * 64, Detail("auto", 9)) is plain
    assert cache.get("a" * 64, Detail("auto", 8)) is None
    cache.put(ImageInput("b" * 64, {"x": np.zeros(60, np.uint8)}, 9))
    assert cache._held_bytes <= 100
