"""PDFs drawn by pdfium in the decoding process: the pages, and what is refused."""

import asyncio
import io
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from server.media import File, LoadedImage, MediaError, MediaLoader
from tests.server.media import pdfs
from tests.server.media.conftest import Loading
from tests.server.media.pdfs import A4, Page, pdf
from tests.server.requests import data_url

pytestmark = [pytest.mark.anyio, pytest.mark.extras]

LANDSCAPE = (842, 595)


async def same(image: LoadedImage) -> LoadedImage:
    return image


async def drawn(load: MediaLoader, *files: File) -> list[tuple[LoadedImage, ...]]:
    return await load.load_all(files, [f"file {n}" for n, _ in enumerate(files)], same)


def corners(image: Image.Image) -> str:
    """Which of the four are black, clockwise from the left top one: "...#" as it is stored."""
    right, bottom = image.width - 20, image.height - 20
    places = [(20, 20), (right, 20), (right, bottom), (20, bottom)]
    return "".join("#" if sum(image.getpixel(at)) < 100 else "." for at in places)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "rotate", "shown", "black"),
    [
        (A4, 0, (1344, 1902), "...#"),
        (A4, 90, (1902, 1344), "#..."),
        (A4, 180, (1344, 1902), ".#.."),
        (A4, 270, (1902, 1344), "..#."),
        (LANDSCAPE, 0, (1902, 1344), "...#"),
        (LANDSCAPE, 90, (1344, 1902), "#..."),
    ],
)
async def test_a_page_is_upright_and_as_large_as_the_rule_says(
    loading: Loading, size: tuple[int, int], rotate: int, shown: tuple[int, int], black: str
) -> None:
    async with loading() as load:
        (((image),),) = await drawn(load, File(data=pdf([Page(size, rotate)])))
    assert (image.image.size, corners(image.image)) == (shown, black)
    assert (image.width, image.height) == shown


async def test_pages_come_in_order_with_their_numbers_wherever_the_file_is(
    loading: Loading,
) -> None:
    document = pdf([Page((200 + 40 * n, 400)) for n in range(4)])

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=document)

    async with loading(handler) as load:
        found = await drawn(
            load,
            File(data=document),
            File(data_url(document).replace("image/png", "application/pdf")),
            File("https://a.example/x.pdf"),
            File(data=document, pages="4,1-2"),
        )
    for pages in found[:3]:
        assert [image.label for image in pages] == ["Page 1", "Page 2", "Page 3", "Page 4"]
        widths = [image.image.width / image.image.height for image in pages]
        assert widths == pytest.approx([0.5, 0.6, 0.7, 0.8], abs=0.01)
    assert [image.label for image in found[3]] == ["Page 4", "Page 1", "Page 2"]
    assert [image.digest for image in found[3]] == [found[0][n].digest for n in (3, 0, 1)]
    assert len({image.digest for image in found[0]}) == 4


async def test_what_was_filled_into_a_form_is_seen(loading: Loading) -> None:
    async with loading() as load:
        ((image,),) = await drawn(load, File(data=pdfs.filled_form()))
    assert corners(image.image) == ".#.#"


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "1 bit"])
async def test_a_scan_is_its_picture(loading: Loading, kind: str) -> None:
    scan = Image.new("L", (2480, 3508), 255)
    scan.paste(0, (1300, 0, 2480, 1800))
    if kind == "1 bit":
        packed = zlib.compress(scan.convert("1").tobytes())
        document = pdfs.scanned(*scan.size, packed, BitsPerComponent=1)
    else:
        encoded = io.BytesIO()
        scan.save(encoded, kind)
        name = {"JPEG": "DCTDecode", "JPEG2000": "JPXDecode"}[kind]
        document = pdfs.scanned(*scan.size, encoded.getvalue(), name)
    async with loading() as load:
        ((image,),) = await drawn(load, File(data=document))
    assert corners(image.image) == ".#.."


DAMAGED: Mapping[str, tuple[Callable[[], bytes], str, str]] = {
    "encrypted": (pdfs.encrypted, "invalid_file", "encrypted"),
    "truncated": (lambda: pdf([Page()] * 20)[:2000], "invalid_file", "truncated"),
    "cut, and its end put back": (
        lambda: pdf([Page()] * 20)[:300] + b"%%EOF",
        "invalid_file",
        "damaged",
    ),
    "without pages": (lambda: pdf([]), "invalid_file", "damaged|no pages"),
    "no more than its name": (lambda: b"%PDF-1.7 %%EOF", "invalid_file", "damaged"),
    "a page that is not there": (
        lambda: pdf([Page()] * 3).replace(b"5 0 obj\n<< /Type /Page ", b"5 0 obj\n<< /Type /Font "),
        "invalid_file",
        "Page 2 of the PDF is damaged|damaged",
    ),
    "a million pages": (
        lambda: pdf([Page()]).replace(b"/Count 1 ", b"/Count 1000000 "),
        "file_too_large",
        "1000000 pages; 10000 are allowed",
    ),
    "a very long page": (
        lambda: pdf([Page((10, 5000))]),
        "file_too_large",
        "Page 1 is more than 50 times",
    ),
    "a bomb": (pdfs.bomb, "file_too_large", "30000 x 30000"),
}


@pytest.mark.parametrize("name", DAMAGED)
async def test_what_cannot_be_drawn_is_refused_and_the_next_is_drawn(
    loading: Loading, name: str
) -> None:
    make, code, words = DAMAGED[name]
    async with loading() as load:
        with pytest.raises(MediaError, match=words) as refused:
            await drawn(load, File(data=make()))
        assert (refused.value.code, refused.value.param) == (code, "file 0")
        assert load.held_bytes == 0
        assert len((await drawn(load, File(data=pdf())))[0]) == 1


async def test_a_page_without_end_is_ended(loading: Loading) -> None:
    async with loading(decode_cpu_s=1) as load:
        with pytest.raises(MediaError, match=r"^Page 1 ") as refused:
            await drawn(load, File(data=pdfs.endless()))
        assert refused.value.code in ("file_too_large", "invalid_file")
        assert len((await drawn(load, File(data=pdf())))[0]) == 1


async def test_pages_together_have_a_time_too(loading: Loading) -> None:
    async with loading(document_limit_s=0) as load:
        with pytest.raises(MediaError, match="to draw, up to page 1") as refused:
            await drawn(load, File(data=pdf()))
    assert refused.value.code == "file_too_large"


async def test_too_many_pages_are_refused_before_any_is_drawn(loading: Loading) -> None:
    document = pdf([Page((60, 80))] * 300)
    async with loading() as load:
        ran = jobs_of(load)
        with pytest.raises(MediaError, match=r"300 images or more.*64 are allowed") as refused:
            await drawn(load, File(data=document))
        assert ran == ["document"]
        assert refused.value.code == "file_too_large"
        with pytest.raises(MediaError, match="66 images"):
            await drawn(
                load, File(data=document, pages="1-33"), File(data=pdf([Page((60, 80))] * 33))
            )
        assert len((await drawn(load, File(data=document, pages="300")))[0]) == 1


async def test_of_three_hundred_pages_no_more_than_two_are_in_memory(loading: Loading) -> None:
    running = most = 0

    async def use(image: LoadedImage) -> str | None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return image.label

    document = pdf([Page((60, 80))] * 300)
    async with loading(max_request_images=300) as load:
        (labels,) = await load.load_all([File(data=document)], [None], use)
    assert labels == tuple(f"Page {n}" for n in range(1, 301))
    assert most <= 2


async def test_a_page_of_many_large_pictures_takes_no_more_memory_than_one(
    loading: Loading,
) -> None:
    side, packed = 4000, pdfs.zeros(4000 * 4000 * 3)
    content = b"".join(b"q 80 0 0 80 %d %d cm /I%d Do Q " % (9 * n, 762, n) for n in range(20))
    shown = " ".join(f"/I{n} {5 + n} 0 R" for n in range(20))
    colour = {"ColorSpace": "/DeviceRGB"}
    others = {5 + n: pdfs.picture(side, side, packed, **colour) for n in range(20)}
    document = pdf([Page(content=content, resources=f"/XObject << {shown} >>")], others)
    async with loading(max_decodes=1, decode_cpu_s=60, decode_limit_s=100) as load:
        ((image,),) = await drawn(load, File(data=document))
        peak = peak_bytes(load)
    assert corners(image.image)[0] == "#"
    assert peak < 600 * 2**20, "a GiB is in these pictures"


async def test_a_document_that_comes_again_is_neither_opened_nor_drawn(loading: Loading) -> None:
    document = pdf([Page()] * 3)
    shelf: dict[str, str | None] = {}

    async def use(image: LoadedImage) -> str | None:
        shelf[image.digest] = image.label
        return image.label

    def known(digest: str, label: str | None = None, *_: str | None) -> str | None:
        return f"{label} again" if digest in shelf else None

    async with loading() as load:
        await load.load_all([File(data=document)], [None], use, known)
        ran = jobs_of(load)
        (again,) = await load.load_all([File(data=document)], [None], use, known)
        assert again == ("Page 1 again", "Page 2 again", "Page 3 again")
        assert not ran
        await load.load_all([File(data=document + b"\n")], [None], use, known)
        assert ran == ["document", *["page"] * 3]


async def test_who_leaves_leaves_nothing_behind(loading: Loading) -> None:
    async with loading(max_request_images=300) as load:
        task = asyncio.create_task(drawn(load, File(data=pdf([Page()] * 300))))
        while not jobs_running(load):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert load.held_bytes == 0
        assert len((await drawn(load, File(data=pdf())))[0]) == 1


def jobs_of(load: MediaLoader) -> list[str]:
    """The names of the jobs that decoding processes are given from now on."""
    ran: list[str] = []
    own = load._sandbox.run

    async def run(order: Any, data: bytes) -> Any:
        ran.append(order.job)
        return await own(order, data)

    load._sandbox.run = run  # type: ignore[method-assign]
    return ran


def jobs_running(load: MediaLoader) -> bool:
    return load._memory.held_bytes > 0


def peak_bytes(load: MediaLoader) -> int:
    """Of the decoding process."""
    process = load._sandbox._idle.get()
    status = Path(f"/proc/{process._process.pid}/status").read_text()
    load._sandbox._idle.put(process)
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
