"""PDFs written by hand, a few hundred bytes each: pages, pictures, forms, and bad ones.

Every page is white but for a black square at its left lower corner as it is stored, a quarter of
its width; so that which way up it is shown can be seen.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

A4 = (595, 842)


@dataclass(frozen=True)
class Page:
    """Size in points, turned clockwise by `rotate`; `content` is drawn over the square."""

    size: tuple[float, float] = A4
    rotate: int = 0
    content: bytes = b""
    resources: str = ""
    more: str = ""

    @property
    def drawn(self) -> bytes:
        side = self.size[0] / 4
        return b"0 g 0 0 %g %g re f\n" % (side, side) + self.content


@dataclass
class Writer:
    """Objects by number, written with a table of where they are."""

    objects: dict[int, bytes] = field(default_factory=dict)
    trailer: bytes = b""

    def add(self, body: bytes) -> int:
        number = len(self.objects) + 1
        self.objects[number] = body
        return number

    def written(self) -> bytes:
        out, places = bytearray(b"%PDF-1.7\n"), []
        for number, body in self.objects.items():
            places.append(len(out))
            out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
        table, size = len(out), len(places) + 1
        out += b"xref\n0 %d\n0000000000 65535 f \n" % size
        out += b"".join(b"%010d 00000 n \n" % place for place in places)
        out += b"trailer\n<< /Size %d /Root 1 0 R %b >>\n" % (size, self.trailer)
        return bytes(out + b"startxref\n%d\n%%%%EOF\n" % table)


def stream(data: bytes, entries: str = "") -> bytes:
    return f"<< {entries} /Length {len(data)} >>\nstream\n".encode() + data + b"\nendstream"


def pdf(
    pages: Sequence[Page] = (Page(),),
    others: Mapping[int, bytes] | None = None,
    *,
    catalog: str = "",
    trailer: bytes = b"",
) -> bytes:
    """A document. Objects from `2 + 2 * len(pages) + 1` on are `others`, in their order."""
    writer = Writer(trailer=trailer)
    kids = " ".join(f"{3 + 2 * n} 0 R" for n in range(len(pages)))
    writer.add(f"<< /Type /Catalog /Pages 2 0 R {catalog} >>".encode())
    writer.add(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode())
    for n, page in enumerate(pages):
        width, height = page.size
        writer.add(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] /Rotate {page.rotate} "
            f"/Contents {4 + 2 * n} 0 R /Resources << {page.resources} >> {page.more} >>".encode()
        )
        writer.add(stream(page.drawn))
    for number, body in (others or {}).items():
        assert writer.add(body) == number
    return writer.written()


def picture(
    width: int, height: int, data: bytes, filter: str = "FlateDecode", **more: object
) -> bytes:
    """An image object; grey, 8 bits, unless `more` says otherwise."""
    entries = {"ColorSpace": "/DeviceGray", "BitsPerComponent": 8} | more
    shown = " ".join(f"/{name} {value}" for name, value in entries.items())
    head = (
        f"/Type /XObject /Subtype /Image /Width {width} /Height {height} /Filter /{filter} {shown}"
    )
    return stream(data, head)


def scanned(
    width: int, height: int, data: bytes, filter: str = "FlateDecode", **more: object
) -> bytes:
    """One A4 page that is one picture."""
    page = Page(content=b"q 595 0 0 842 0 0 cm /I Do Q", resources="/XObject << /I 5 0 R >>")
    return pdf([page], {5: picture(width, height, data, filter, **more)})


def zeros(num_bytes: int) -> bytes:
    """So many, packed, without all of them in memory at once."""
    packer, packed, block = zlib.compressobj(9), bytearray(), bytes(2**20)
    for at in range(0, num_bytes, len(block)):
        packed += packer.compress(block[: min(len(block), num_bytes - at)])
    return bytes(packed + packer.flush())


def bomb() -> bytes:
    """900 megapixels in a megabyte."""
    return scanned(30_000, 30_000, zeros(30_000 * 30_000))


def encrypted() -> bytes:
    """Asks for a password: the keys in it fit none."""
    key = b"00" * 32
    entry = b"/Encrypt << /Filter /Standard /V 1 /R 2 /O <%b> /U <%b> /P -4 >>" % (key, key)
    return pdf(trailer=entry + b" /ID [<00> <00>]")


def endless() -> bytes:
    """A page whose few bytes unpack to millions of strokes."""
    packer, packed, block = zlib.compressobj(9), bytearray(), b"0 0 m 100 100 l S " * 50_000
    for _ in range(80):
        packed += packer.compress(block)
    packed += packer.flush()
    document = Writer()
    document.add(b"<< /Type /Catalog /Pages 2 0 R >>")
    document.add(b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>")
    document.add(b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R >>")
    document.add(stream(bytes(packed), "/Filter /FlateDecode"))
    return document.written()


def filled_form() -> bytes:
    """A form with a black field at the top right, which only its appearance shows."""
    box = "[297 421 595 842]"
    look = stream(b"0 g 0 0 298 421 re f", "/Type /XObject /Subtype /Form /BBox [0 0 298 421]")
    field = (
        f"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (x) /F 4 /Rect {box} "
        "/AP << /N 6 0 R >> >>"
    )
    catalog = "/AcroForm << /Fields [5 0 R] >>"
    return pdf([Page(more="/Annots [5 0 R]")], {5: field.encode(), 6: look}, catalog=catalog)
