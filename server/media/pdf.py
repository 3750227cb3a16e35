"""PDFs in a process of the `sandbox`: how many pages there are, and one of them as pixels.

pdfium draws (pypdfium2, pip's extra `pdf`), imported here and only when there is a PDF. It leaves
out, without a word, pictures that it has no memory for; so those of a page are looked at, by what
they say of themselves, before it is drawn. No JavaScript, no XFA: its builds have neither.

**How large a page becomes.** Its shorter side has `side` pixels, as far as that is neither more
than `MAX_DPI` nor `MAX_PAGE_PIXELS` in all. A4 at 1,344: 1344 x 1901, which is 163 dpi. What the
model's own processor makes of such a picture is its affair, as with any other.
"""

import contextlib
import ctypes
import math
from collections.abc import Iterator, Mapping
from typing import Any

from server.media.media_error import MediaError

Facts = Mapping[str, Any]

POINTS_PER_INCH = 72
MAX_DPI = 200  # small print is legible; a stamp is not blown up
MAX_PAGE_PIXELS = 4 * 10**6
MAX_PAGES = 10_000  # of a document, of which a request takes some
WORKING_BYTES = 256 * 2**20  # of pdfium: 67 megapixels of a progressive JPEG took 300 MB
BYTES_A_PIXEL = 10  # of the page: as drawn, as packed, as handed over
OPENING_BYTES = 64 * 2**20  # tables of objects
TAIL_BYTES = 1024  # in which readers look for the end, and in as many for the beginning
PADDED_BYTES = 65 * TAIL_BYTES  # and which blocks of disks and tapes fill up with zeros

NEEDS_PASSWORD, UNKNOWN_SECURITY = 4, 5  # FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY


def is_pdf(data: bytes | bytearray) -> bool:
    """Whether a reader would take it for one: some begin with a few bytes of something else."""
    return data.find(b"%PDF-", 0, TAIL_BYTES) >= 0


def check_ends(data: bytes | bytearray) -> None:
    """Refuse what is cut off: pdfium shows the pages it can still find. Raises `MediaError`."""
    if b"%%EOF" not in data[-PADDED_BYTES:].rstrip(b"\0\r\n\t ")[-TAIL_BYTES:]:
        raise damaged("The PDF is truncated: its end is missing. Send the whole file.")


def rendered_size(width_pt: float, height_pt: float, side: int) -> tuple[int, int]:
    """Pixels of a page of so many points."""
    scale = scale_of(width_pt, height_pt, side)
    return max(1, math.ceil(width_pt * scale)), max(1, math.ceil(height_pt * scale))


def scale_of(width_pt: float, height_pt: float, side: int) -> float:
    """Pixels a point; a little less, so that rounding up does not add a pixel."""
    return (1 - 1e-6) * min(
        side / min(width_pt, height_pt),
        MAX_DPI / POINTS_PER_INCH,
        math.sqrt(MAX_PAGE_PIXELS / (width_pt * height_pt)),
    )


def document(data: bytearray, _: Facts) -> tuple[Facts, bytes]:
    """How many pages it has, as it says: they are not looked at. Raises `MediaError`."""
    with _opened(data) as pdf:
        num_pages = len(pdf)
    if num_pages > MAX_PAGES:
        message = f"The PDF has {num_pages} pages; {MAX_PAGES} are allowed. Send a part of it."
        raise MediaError("file_too_large", message)
    return {"num_pages": num_pages}, b""


def page(data: bytearray, options: Facts) -> tuple[Facts, bytes]:
    """The RGB pixels of page `number`, counted from 1, and their size. Raises `MediaError`.

    `side`: see the module; `max_pixels` of a picture on it; `max_aspect` of the page.
    """
    number = int(options["number"])
    with _opened(data) as pdf:
        pdf.init_forms()  # what was filled in is drawn, too
        with _readable(f"Page {number} of the PDF is damaged."):
            found = pdf[number - 1]
        width_pt, height_pt = found.get_size()
        _check_shape(number, width_pt, height_pt, options["max_aspect"])
        _check_pictures(number, found, options["max_pixels"])
        bitmap = found.render(
            scale=scale_of(width_pt, height_pt, options["side"]),
            rev_byteorder=True,
            limit_image_cache=True,
        )
        image = bitmap.to_pil().convert("RGB")
        return {"kept": image.size}, image.tobytes()


def damaged(message: str) -> MediaError:
    """The error for bytes that are no whole document."""
    return MediaError("invalid_file", message)


@contextlib.contextmanager
def _opened(data: bytearray) -> Iterator[Any]:
    import pypdfium2

    check_ends(data)
    held = (ctypes.c_char * len(data)).from_buffer(data)  # not copied
    with _readable("The PDF is damaged. Save and send it again."):
        pdf = pypdfium2.PdfDocument(held)
    try:
        yield pdf
    finally:
        pdf.close()


@contextlib.contextmanager
def _readable(otherwise: str) -> Iterator[None]:
    """pdfium's failures as ours."""
    from pypdfium2 import PdfiumError

    try:
        yield
    except PdfiumError as error:
        code = getattr(error, "err_code", None)
        if code in (NEEDS_PASSWORD, UNKNOWN_SECURITY):
            raise damaged("The PDF is encrypted. Send it without a password.") from error
        raise damaged(otherwise) from error


def _check_shape(number: int, width_pt: float, height_pt: float, max_aspect: int) -> None:
    shorter, longer = sorted((width_pt, height_pt))
    if not (math.isfinite(longer) and shorter > 0):
        raise damaged(f"Page {number} of the PDF has no size.")
    if longer > max_aspect * shorter:
        raise MediaError(
            "file_too_large",
            f"Page {number} is more than {max_aspect} times as long as it is wide, or the other "
            "way round.",
        )


def _check_pictures(number: int, found: Any, max_pixels: int) -> None:
    from pypdfium2.raw import FPDF_PAGEOBJ_IMAGE

    for picture in found.get_objects(filter=(FPDF_PAGEOBJ_IMAGE,)):
        width, height = picture.get_px_size()
        if width * height > max_pixels:
            raise MediaError(
                "file_too_large",
                f"Page {number} has a picture of {width} x {height} pixels; {max_pixels} are "
                "allowed. Scale it down.",
            )
