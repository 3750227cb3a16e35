"""Which format these bytes are, by the first of them. A refused format is named in the error."""

from server.media.media_error import MediaError

SUPPORTED = "Send JPEG, PNG, WebP, GIF or BMP."

SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
)
REFUSED = (
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\0\0\x01\0", "icon"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
)
HINTS = {"PDF": f'{SUPPORTED} A PDF goes into a part of type "file".'}
HEIF_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"heim", b"heis"))
AVIF_BRANDS = frozenset((b"avif", b"avis"))


def sniff(data: bytes) -> str:
    """A key of `decode.DECODERS`. Raises `MediaError` for anything else."""
    if not data:
        raise MediaError("invalid_image", "It has no bytes.")
    for signature, name in SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    refused = _refused_name(data)
    if refused is None:
        raise MediaError("unsupported_image", f"The bytes are no image we know. {SUPPORTED}")
    hint = HINTS.get(refused, SUPPORTED)
    raise MediaError("unsupported_image", f"{refused} is not supported. {hint}")


def _refused_name(data: bytes) -> str | None:
    for signature, name in REFUSED:
        if data.startswith(signature):
            return name
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return "HEIC" if brand in HEIF_BRANDS else "AVIF" if brand in AVIF_BRANDS else "Video"
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in text:
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html")):
        return "A web page"
    return None
