"""An image that was sent once may be named by its digest, while it is cached."""

import hashlib

import numpy as np
import pytest

from lookm.types import ImageInput
from server.api_errors import ApiError
from server.openai.request.image_cache import ImageCache
from server.settings import Settings
from tests.server.requests import CHAT, chat, data_url, image, png, says, serving

pytestmark = pytest.mark.anyio


def named(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tensor(digest: str, num_bytes: int) -> ImageInput:
    return ImageInput(digest * 64, {"x": np.zeros(num_bytes, np.uint8)}, 1)


async def test_a_digest_stands_for_the_image_and_costs_no_preprocessing() -> None:
    red, blue = png("red"), png("blue")
    async with serving(Settings(model="fake"), says) as (client, engine, _):
        first = chat(image(data_url(red)), image(data_url(blue)))
        assert (await client.post(CHAT, json=first)).status_code == 200
        again = chat(image(named(blue)), "and", image(named(red).upper().replace("SHA", "sha")))
        assert (await client.post(CHAT, json=again)).status_code == 200
        sent, reused = engine.requests
        series = (await client.get("/metrics")).text
    assert [each.digest for each in reused.images] == [each.digest for each in sent.images][::-1]
    assert "lookm_media_preprocess_seconds_count 2.0" in series


def test_the_cache_forgets_the_least_recently_used() -> None:
    cache = ImageCache(100)
    for digest in "abc":
        cache.put(tensor(digest, 40))
        cache.get("b" * 64)
    assert [cache.get(digest * 64) is not None for digest in "abc"] == [False, True, True]
    cache.put(tensor("d", 101))
    assert cache.get("d" * 64) is None
    with pytest.raises(ApiError) as caught:
        cache.named("sha256:" + "a" * 64, "here")
    assert (caught.value.status, caught.value.param) == (404, "here")
