"""data: URLs and the loader as the server uses it."""

import asyncio
import base64
import hashlib
import time
from typing import Any, get_args

import httpx
import pytest
from PIL import Image

from lookm.errors import QueueFullError
from server.media import LoadedImage, MediaConfig, MediaError, MediaLoader, media_error
from server.media.budget import Budget
from server.media.data_url import PIECE_CHARS, read_data_url
from server.media.decode import examine
from server.turns import owned_by
from tests.server.media.conftest import Body, Loading, encode, picture
from tests.server.requests import data_url

PNG = encode(picture())
PNG64 = base64.b64encode(PNG).decode()

pytestmark = pytest.mark.anyio


async def same(image: LoadedImage) -> LoadedImage:
    return image


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
        f"data:image/png;base64,{PNG64.rstrip('=')}",
        f"data:image/png;base64,{PNG64.translate(str.maketrans('+/', '-_'))}",
        f"data:image/png;base64,{PNG64.translate(str.maketrans('+/', '-_')).rstrip('=')}\n",
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
        f"data:image/png;base64,{PNG64.rstrip('=')[:-2]}",
        f"data:image/png;base64,{PNG64}=",
        f"data:image/png;base64,{PNG64}AAAA",
        "data:image/png;base64,iVBO*w0!",
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


def test_a_long_data_url_is_read_in_pieces_as_if_it_were_one() -> None:
    data = bytes(range(256)) * 2**13
    encoded = base64.b64encode(data)
    assert len(encoded) > 2 * PIECE_CHARS
    for text in (encoded, encoded.rstrip(b"="), base64.urlsafe_b64encode(data)):
        assert read("data:;base64," + text.decode()) == data
    for wrong in (b"====", b"AA==", b"*AAA"):
        broken = encoded[: PIECE_CHARS - 4] + wrong + encoded[PIECE_CHARS:]
        with pytest.raises(MediaError, match="base64"):
            read("data:;base64," + broken.decode())


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
        loaded = await load.load_all(urls, [None] * 20, same)
        assert await load.load_all([], [], same) == []
    assert [image.width for (image,) in loaded] == [1, 2, 3, 8, *range(4, 20)]


async def test_a_known_picture_is_not_decoded_again(
    loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = encode(Image.new("RGB", (5, 5)))
    known = {hashlib.sha256(PNG).hexdigest(): "known"}
    async with loading() as load:
        ran: list[Any] = []
        own = load._sandbox.run

        async def run(*job: Any) -> Any:
            ran.append(job)
            return await own(*job)

        monkeypatch.setattr(load._sandbox, "run", run)
        urls = [data_url(PNG), data_url(other)]
        first, second = await load.load_all(
            urls, [None, None], same, lambda digest, *_: known.get(digest)
        )
    assert first == ("known",)
    assert second[0].width == 5
    assert len(ran) == 1


async def test_one_bad_image_fails_the_request_under_its_own_name(loading: Loading) -> None:
    async with loading() as load:
        with pytest.raises(MediaError) as refused:
            await load.load_all([data_url(PNG), "file:///etc/passwd"], ["first", "second"], same)
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
            await load.load_all(["https://a.example/", "https://a.example/bad"], [None, None], same)
        assert closed.is_set()


async def test_bytes_are_counted_over_a_request(loading: Loading) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=PNG)

    urls = [data_url(PNG), "https://a.example/"]
    async with loading(handler, max_request_bytes=2 * len(PNG)) as load:
        assert len(await load.load_all(urls, [None, None], same)) == 2
    async with loading(handler, max_request_bytes=2 * len(PNG) - 1) as load:
        with pytest.raises(MediaError, match="together") as refused:
            await load.load_all(urls, [None, None], same)
    assert refused.value.code == "image_too_large"


async def test_no_more_pictures_are_in_memory_than_allowed(loading: Loading) -> None:
    release = asyncio.Event()
    running = max_running = 0

    async def slow(image: LoadedImage) -> int:
        nonlocal running, max_running
        running += 1
        max_running = max(max_running, running)
        await release.wait()
        running -= 1
        return image.width

    async with loading(max_decodes=2) as load:
        task = asyncio.create_task(load.load_all([data_url(PNG)] * 8, [None] * 8, slow))
        while running < 2:
            await asyncio.sleep(0.001)
        release.set()
        assert await task == [(8,)] * 8
    assert max_running == 2


async def test_decoding_waits_for_memory_and_what_never_fits_is_refused(loading: Loading) -> None:
    large = encode(Image.new("L", (1000, 1000)))
    cost_bytes = examine(large, MediaConfig()).cost_bytes
    async with loading(memory_bytes=cost_bytes) as load:
        found = await load.load_all([data_url(large)] * 3, [None] * 3, same)
        assert [image.width for (image,) in found] == [1000] * 3
        assert load.held_bytes == 0
    async with loading(memory_bytes=cost_bytes - 1) as load:
        with pytest.raises(MediaError, match="may take") as refused:
            await load.load(data_url(large))
    assert refused.value.code == "image_too_large"


async def test_kept_pixels_are_counted_over_a_request(loading: Loading) -> None:
    url = data_url(encode(Image.new("RGB", (10, 5))))
    async with loading(max_request_pixels=100) as load:
        await load.load_all([url, url + " "], [None] * 2, same)
        with pytest.raises(MediaError, match="together") as refused:
            await load.load_all([url, url + " ", url + "  "], [None] * 3, same)
    assert refused.value.code == "image_too_large"


async def test_a_newcomer_downloads_at_once_whatever_others_hold(loading: Loading) -> None:
    entered = 0

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal entered
        if request.url.path.startswith("/drips"):
            entered += 1
            await asyncio.Event().wait()
        return httpx.Response(200, content=PNG)

    drips = [f"https://a.example/drips{n}" for n in range(16)]

    async def attack(load: MediaLoader) -> None:
        with owned_by(""):
            await load.load_all(drips, [None] * 16, same)

    async with loading(handler, max_fetches=8) as load:
        attacks = [asyncio.create_task(attack(load)) for _ in range(4)]
        while entered < 8 + 4:
            await asyncio.sleep(0)
        urls = [f"https://a.example/{n}" for n in range(5)]
        assert len(await asyncio.wait_for(load.load_all(urls, [None] * 5, same), 10)) == 5
        assert entered == 8 + 4, "one for each request, and eight together"
        for task in attacks:
            task.cancel()
        await asyncio.gather(*attacks, return_exceptions=True)
        assert load.held_bytes == 0


async def test_the_greedy_request_is_refused_where_too_much_is_downloaded(
    loading: Loading,
) -> None:
    arrived = asyncio.Event()

    class Large(Body):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            yield b"x" * 900
            arrived.set()
            await asyncio.Event().wait()

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/large":
            return httpx.Response(200, stream=Large(b""))
        return httpx.Response(200, content=PNG if request.url.path == "/small" else b"x" * 600)

    async with loading(handler, max_downloaded_bytes=1000) as load:
        attack = asyncio.create_task(load.load("https://a.example/large"))
        await arrived.wait()
        assert (await load.load("https://a.example/small")).width == 8
        with pytest.raises(QueueFullError):
            await load.load("https://a.example/not-small")
        attack.cancel()
        await asyncio.gather(attack, return_exceptions=True)
        assert load.held_bytes == 0


async def test_thirty_photos_are_affordable(loading: Loading) -> None:
    gradient = Image.linear_gradient("L").resize((4032, 3024)).convert("RGB")
    url = data_url(encode(gradient, "JPEG"))
    begun_s = time.perf_counter()
    async with loading() as load:
        loaded = await load.load_all([url] * 30, [None] * 30, same)
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
    rows = [line.split() for line in (media_error.__doc__ or "").splitlines() if " 40" in line]
    assert {row[0] for row in rows} == set(get_args(media_error.Code))
