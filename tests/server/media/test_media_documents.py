"""What is known of a document before it is opened: no extra is needed for these."""

import pytest

from server.media import File, LoadedImage, MediaError, documents
from server.media.documents import wanted
from server.media.pdf import MAX_PAGE_PIXELS, check_ends, is_pdf, scale_of
from tests.server.media.conftest import Loading, encode, picture
from tests.server.media.pdfs import pdf
from tests.server.requests import data_url

pytestmark = pytest.mark.anyio


async def same(image: LoadedImage) -> LoadedImage:
    return image


def test_a_pdf_is_known_by_its_first_bytes_even_behind_a_few_others() -> None:
    assert is_pdf(pdf())
    assert is_pdf(b"\r\n%!junk\n" + pdf())
    assert not is_pdf(b"x" * 2000 + pdf())
    assert not is_pdf(encode(picture()))


@pytest.mark.parametrize("after", [b"", b"\n", b"\0" * 3000, b"\0" * 2**16, b"<!-- a server's -->"])
def test_a_document_ends_near_its_end(after: bytes) -> None:
    check_ends(pdf() + after)
    cut = pdf()[:-8]
    with pytest.raises(MediaError, match="truncated") as refused:
        check_ends(cut + after)
    assert refused.value.code == "invalid_file"


@pytest.mark.parametrize(
    ("size_pt", "expected"),
    [
        ((595, 842), (1344, 1902)),
        ((842, 595), (1902, 1344)),
        ((144, 72), (400, 200)),  # a stamp: 200 dpi
        ((2384, 3370), (1344, 1900)),  # A0
        ((100, 4000), (278, 11_111)),  # a till receipt: 200 dpi
        ((1000, 20_000), (447, 8944)),  # 4 megapixels
    ],
)
def test_a_page_is_as_large_as_the_rule_says(
    size_pt: tuple[int, int], expected: tuple[int, int]
) -> None:
    width, height = (side * scale_of(*size_pt, 1344) for side in size_pt)
    assert (width, height) == pytest.approx(expected, abs=1)
    assert width * height <= MAX_PAGE_PIXELS


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        (None, [1, 2, 3, 4, 5]),
        ("2", [2]),
        ("4-5,1", [4, 5, 1]),
        ("2,1-3,2", [2, 1, 3]),
    ],
)
def test_wanted_pages_are_those_named_once_each_in_that_order(
    pages: str | None, expected: list[int]
) -> None:
    assert wanted(pages, 5, None) == expected


@pytest.mark.parametrize("pages", ["6", "0", "3-2", "1-6", "1-9999999"])
def test_pages_that_are_not_there_are_refused_under_their_own_name(pages: str) -> None:
    with pytest.raises(MediaError, match="which has 5") as refused:
        wanted(pages, 5, "messages[0].content[1].file.file_id")
    assert refused.value.param == "messages[0].content[1].file.pages"


def test_naming_pages_again_and_again_is_no_work() -> None:
    with pytest.raises(MediaError, match="more than 10000 are named"):
        wanted(",".join(["1-9999"] * 140), 10_000, None)


async def test_a_file_that_is_a_picture_is_that_picture(loading: Loading) -> None:
    data = encode(picture())
    async with loading() as load:
        files = [File(data=data), File(data_url(data)), File(data=data, pages="1")]
        found = await load.load_all(files, [None] * 3, same)
        with pytest.raises(MediaError, match="which has 1"):
            await load.load_all([File(data=data, pages="2")], ["x.file_data"], same)
    assert [image.image.tobytes() for (image,) in found] == [picture().tobytes()] * 3
    assert [image.label for (image,) in found] == [None] * 3


@pytest.mark.parametrize(
    ("file", "code", "words"),
    [
        (File(data=b""), "invalid_file", "no bytes"),
        (File("data:application/pdf;base64,"), "invalid_file", "no bytes"),
        (File("data:application/pdf;base64,@@@"), "invalid_file_url", "base64"),
        (File(data=b"hello"), "unsupported_file", "no PDF, and no picture"),
        (File(data=encode(picture())[:80]), "invalid_file", "truncated"),
        (File(data_url(b"x" * 3000)), "file_too_large", "2000 bytes"),
        (File("https://127.0.0.1/a.pdf"), "invalid_file_url", "public"),
        (File("file:///etc/passwd"), "invalid_file_url", "https://"),
    ],
)
async def test_what_cannot_be_read_is_refused_as_a_file(
    loading: Loading, file: File, code: str, words: str
) -> None:
    async with loading(max_file_bytes=2000) as load:
        with pytest.raises(MediaError, match=words) as refused:
            await load.load_all([file], ["the part"], same)
        assert load.held_bytes == 0
    assert (refused.value.code, refused.value.param) == (code, "the part")


async def test_without_the_extra_a_pdf_is_refused_with_the_command_that_installs_it(
    loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "find_spec", lambda _: None)
    async with loading() as load:
        with pytest.raises(MediaError, match=r"pip install 'lookm-server\[pdf\]'") as refused:
            await load.load_all([File(data=pdf())], ["x"], same)
    assert refused.value.code == "unsupported_file"
