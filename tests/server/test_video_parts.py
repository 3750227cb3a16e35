"""`video_url` in a chat: frames with their times where the part stands, counted as images are."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from server.fake.processor import IMAGE_TOKENS, FakeProcessor
from server.media import videos
from server.settings import Settings
from tests.server.media.clips import clip, url
from tests.server.requests import CHAT, INFO, chat, data_url, image, png, says, serving

pytestmark = pytest.mark.anyio

NO_VIDEO = "data:video/mp4;base64,AAAA"
PARAM = "messages[0].content[0].video_url.url"


def video(where: str, **options: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": where, **options}}


async def test_without_the_extra_a_video_is_refused_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(videos, "find_spec", lambda name: None)
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        response = await client.post(CHAT, json=chat(video(NO_VIDEO)))
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "unsupported_video")
        assert error["param"] == PARAM
        assert "pip install 'lookm-server[video]'" in error["message"]
        assert not engine.requests
        assert (await client.post(CHAT, json=chat(image()))).status_code == 200
        (model, *_) = (await client.get("/v1/models")).json()["data"]
        assert model["accepts"]["video"] is False


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "video_url"}, "messages[0].content[0].video_url"),
        (video(""), PARAM),
        (video(NO_VIDEO, fps=0), "messages[0].content[0].video_url.fps"),
        (video(NO_VIDEO, fps=1e9), "messages[0].content[0].video_url.fps"),
        (video(NO_VIDEO, max_frames=0), "messages[0].content[0].video_url.max_frames"),
        (video(NO_VIDEO, max_frames=2.5), "messages[0].content[0].video_url.max_frames"),
        (video(NO_VIDEO, audio=True), "messages[0].content[0].video_url.audio"),
    ],
)
async def test_what_is_wrong_with_the_part_is_named(part: dict[str, Any], param: str) -> None:
    async with serving(Settings(model="fake"), says) as (client, _, _app):
        response = await client.post(CHAT, json=chat(part))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


class Recording(FakeProcessor):
    """Remembers the conversation that it was to render."""

    def prompt(self, messages: Sequence[Any], *images_and_tools: Any) -> tuple[int, ...]:
        self.messages = messages
        return super().prompt(messages, *images_and_tools)


@pytest.mark.extras
async def test_frames_and_their_times_stand_where_the_part_does() -> None:
    processor, data = Recording(), clip()
    parts = {"load_processor": lambda: processor}
    async with serving(Settings(model="fake"), says, **parts) as (client, engine, _):
        body = chat("a", video(url(data), fps=0.25), "b", image(), video(url(data), max_frames=1))
        answer = await client.post(CHAT, json=body)
        assert answer.status_code == 200
        shown = [part.get("text", "IMAGE") for part in processor.messages[0]["content"]]
        sampled = ["\n0:00.0\n", "IMAGE", "\n0:04.0\n", "IMAGE"]
        assert shown == ["a", *sampled, "b", "IMAGE", "\n0:02.5\n", "IMAGE"]
        assert len({each.digest for each in engine.requests[0].images}) == 4
        details = answer.json()["usage"]["prompt_tokens_details"]
        assert details["image_tokens"] == 4 * IMAGE_TOKENS
        assert answer.json()["usage"]["kv_cache"]["image_tokens"] == 4 * IMAGE_TOKENS
        (model, *_) = (await client.get("/v1/models")).json()["data"]
        assert model["accepts"]["video"] is True
        counted = await client.post(
            "/tokenize", json={"model": "fake", "messages": body["messages"]}
        )
        assert counted.json()["images"] == [IMAGE_TOKENS] * 4


@pytest.mark.extras
async def test_the_same_video_again_is_not_preprocessed_and_its_digest_stands_for_it() -> None:
    data = clip()
    named = "sha256:" + hashlib.sha256(data).hexdigest()
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        for where in (url(data), url(data), named, named.upper().replace("SHA", "sha")):
            assert (await client.post(CHAT, json=chat(video(where)))).status_code == 200
        assert len({tuple(i.digest for i in each.images) for each in engine.requests}) == 1
        assert "lookm_media_preprocess_seconds_count 6.0" in (await client.get("/metrics")).text
        other = await client.post(CHAT, json=chat(video(named, fps=2)))
        assert (other.status_code, other.json()["error"]["code"]) == (404, "video_not_found")
        assert other.json()["error"]["param"] == PARAM


@pytest.mark.extras
async def test_frames_count_against_the_images_of_a_request() -> None:
    settings = Settings(model="fake", max_images=7)
    async with serving(settings, says) as (client, engine, _):
        assert (await client.post(CHAT, json=chat(video(url(clip())), image()))).status_code == 200
        two = chat(video(url(clip())), image(), image(data_url(png("blue"))))
        refused = await client.post(CHAT, json=two)
        assert refused.status_code == 400
        assert "7 are allowed" in refused.json()["error"]["message"]
        assert len(engine.requests) == 1


@pytest.mark.extras
async def test_by_itself_a_video_takes_no_more_frames_than_the_context_holds() -> None:
    info = replace(INFO, max_context_tokens=4 * IMAGE_TOKENS)
    async with serving(Settings(model="fake"), says, info=info) as (client, engine, _):
        assert (await client.post(CHAT, json=chat(video(url(clip()))))).status_code == 200
        assert len(engine.requests[0].images) == 3
        refused = await client.post(CHAT, json=chat(video(url(clip()), max_frames=6)))
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (400, "context_length_exceeded")
        assert "max_frames" in error["message"]


@pytest.mark.extras
async def test_a_broken_video_is_a_400_that_names_the_part_and_is_counted() -> None:
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        for data in (clip()[:-100], clip()[:100], b"", png(), b"\0" * 4096):
            refused = await client.post(CHAT, json=chat(video(url(data))))
            error = refused.json()["error"]
            assert (refused.status_code, error["param"]) == (400, PARAM)
            assert "video" in error["code"]
            assert "image" not in error["message"].lower()
        assert not engine.requests
        metrics = (await client.get("/metrics")).text
    assert 'lookm_images_refused_total{reason="invalid_video"}' in metrics
