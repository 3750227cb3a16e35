"""data: URLs and the loader as the server uses it."""

import asyncio
import base64
import hashlib
import threading
import time
from typing import get_args

import httpx
import pytest
from PIL import Image

from server.media import MediaConfig, MediaError, decode, loader, media_error
from server.media.budget import Budget
from server.media.data_url import read_data_url
from tests.server.media.conftest import Body, Loading, encode, picture
from tests.server.requests import data_url

PNG = encode(picture())
PNG64 = base64.b64encode(PNG).decode()

pytestmark = pytest.mark.anyio


def read(text: str, **config: object) -> bytes:
    made = MediaConfig(**config)
    return read_data_url(text, made, Budget(made))


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{PNG64}",
        f"DATA:IMAGE/PNG;BASE64,{PNG64}",
        f"data:;base64,{PNG64}",
        f"data:text/html;charset=utf-8;base64,{PNG64}",
        "data:image/png;base64," + base64.encodebytes(PNG).decode(),
        f"data:image/png;base64, {PNG64}\r\n",
    ],
)
def test_base64_data_url_is_read_whatever_its_media_type(text: str) -> None:
    assert read(text) == PNG


@pytest.mark.parametrize(
    "text",
    [
        "data:",
        "data:,",
        f"data:image/png,{PNG64}",
        f"data:image/png;base64;{PNG64}",
        f"data:image/png;charset=base64,{PNG64}",
        "data:" + "a" * 300 + f";base64,{PNG64}",
        f"data:image/png;base64,{PNG64[:-1]}",
        f"data:image/png;base64,{PNG64}=",
        f"data:image/png;base64,{PNG64}AAAA",
        "data:image/png;base64,iVBO-w0_",
        "data:image/png;base64,iVBORw%3D%3D",
        "data:image/png;base64,iVBO\u00e9",
        "data:image/png;base64,=",
    ],
    ids=range(13),
)
def test_data_url_of_any_other_shape_is_refused(text: str) -> None:
    with pytest.raises(MediaError) as refused:
        read(text)
    assert refused.value.code == "invalid_image_url"


def test_data_url_over_the_byte_limit_is_refused() -> None:
    assert len(read(data_url(b"x" * 1000), max_bytes=1000)) == 1000
    for size in (1001, 100_000):
        with pytest.raises(MediaError) as refused:
            read(data_url(b"x" * size), max_bytes=1000)
        assert refused.value.code == "image_too_large"


async def test_loaded_image_names_its_bytes(loading: Loading) -> None:
    async with loading() as load:
        loaded = await load.load(data_url(PNG))
    assert loaded.digest == hashlib.sha256(PNG).hexdigest()
    assert (loaded.width, loaded.height, loaded.num_bytes) == (8, 6, len(PNG))
    assert loaded.fetch_s == 0
    assert loaded.decode_s > 0
    assert loaded.image.tobytes() == picture().tobytes()
    assert "Image" not in repr(loaded).removeprefix("LoadedImage")


async def test_images_of_a_request_keep_their_order(loading: Loading) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        side = int(request.url.path.strip("/"))
        return httpx.Response(200, content=encode(Image.new("RGB", (side, 8))))

    urls = [f"https://a.example/{side}" for side in range(1, 20)]
    urls.insert(3, data_url(PNG))
    async with loading(handler) as load:
        loaded = await load.load_all(urls, [None] * 20)
        assert await load.load_all([], []) == []
    assert [image.width for (image,) in loaded] == [1, 2, 3, 8, *range(4, 20)]


async def test_one_bad_image_fails_the_request_under_its_own_name(loading: Loading) -> None:
    async with loading() as load:
        with pytest.raises(MediaError) as refused:
            await load.load_all([data_url(PNG), "file:///etc/passwd"], ["first", "second"])
    assert refused.value.param == "second"


async def test_one_bad_image_stops_the_other_downloads(loading: Loading) -> None:
    started, closed = asyncio.Event(), asyncio.Event()

    class Forever(Body):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            started.set()
            await asyncio.Event().wait()
            yield b""

        async def aclose(self) -> None:
            closed.set()

    async def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/bad":
            await started.wait()
            return httpx.Response(404)
        return httpx.Response(200, stream=Forever(b""))

    async with loading(handler) as load:
        with pytest.raises(MediaError, match="404"):
            await load.load_all(["https://a.example/", "https://a.example/bad"], [None, None])
        assert closed.is_set()


async def test_bytes_are_counted_over_a_request(loading: Loading) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=PNG)

    urls = [data_url(PNG), "https://a.example/"]
    async with loading(handler, max_request_bytes=2 * len(PNG)) as load:
        assert len(await load.load_all(urls, [None, None])) == 2
    async with loading(handler, max_request_bytes=2 * len(PNG) - 1) as load:
        with pytest.raises(MediaError, match="together") as refused:
            await load.load_all(urls, [None, None])
    assert refused.value.code == "image_too_large"


async def test_no_more_decodes_run_at_once_than_allowed_and_the_loop_stays_free(
    loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, release = threading.Lock(), threading.Event()
    running = max_running = 0

    def slow(*arguments: object) -> decode.Decoded:
        nonlocal running, max_running
        with lock:
            running += 1
            max_running = max(max_running, running)
        assert release.wait(10)
        with lock:
            running -= 1
        return decode.decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loader, "decode", slow)
    async with loading(max_decodes=2) as load:
        task = asyncio.create_task(load.load_all([data_url(PNG)] * 8, [None] * 8))
        while running < 2:
            await asyncio.sleep(0)
        release.set()
        assert len(await task) == 8
    assert max_running == 2


async def test_thirty_photos_are_affordable(loading: Loading) -> None:
    gradient = Image.linear_gradient("L").resize((4032, 3024)).convert("RGB")
    url = data_url(encode(gradient, "JPEG"))
    begun_s = time.perf_counter()
    async with loading() as load:
        loaded = await load.load_all([url] * 30, [None] * 30)
    assert {(i.width, i.height, *i.image.size) for (i,) in loaded} == {(4032, 3024, 2016, 1512)}
    assert time.perf_counter() - begun_s < 30


async def test_cancelled_load_releases_its_slot(loading: Loading) -> None:
    waiting = asyncio.Event()

    async def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/slow":
            waiting.set()
            await asyncio.Event().wait()
        return httpx.Response(200, content=PNG)

    async with loading(handler, max_fetches=1) as load:
        task = asyncio.create_task(load.load("https://a.example/slow"))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await load.load("https://a.example/")).width == 8


def test_every_error_code_is_in_the_table_of_the_docs() -> None:
    rows = [line.split() for line in (media_error.__doc__ or "").splitlines() if " 400 " in line]
    assert {row[0] for row in rows} == set(get_args(media_error.Code))
