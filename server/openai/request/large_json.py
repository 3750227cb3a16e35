"""JSON whose megabytes are a few long data: URLs, parsed without holding everyone up.

The long strings are cut out and small ones put in their place, the rest is parsed, and the long
ones are put back. Each step that holds the interpreter's lock is short: one search or one copy of
one string. Pure; with the parser between `cut` and `restored` the result is the parser's.
"""

import secrets
from collections.abc import Mapping
from typing import Any

LONG_BYTES = 64 * 2**10
BEGINNING = b'"data:'
WINDOW_BYTES = 2**20  # searched at once: a few ms
# Some encoders write the slashes of a URL as `\/`. A string with any other escape is left to the
# parser; raw control characters are no JSON.
SLASH = b"\\/"
UNCUT = (b"\n", b"\r", b"\t", b"\0")


def cut(body: bytes | bytearray) -> tuple[bytes | bytearray, dict[str, str]]:
    """The text with short names in the place of long data: URLs, and what they stand for.

    A quote and `data:` begin a string wherever the quote is not escaped; its end is the next quote,
    as there is no escape in it. The names cannot be guessed, so no other string is one.
    """
    nonce = secrets.token_hex(16)
    kept: list[bytes | bytearray] = []
    strings: dict[str, str] = {}
    at = copied = 0
    while (start := _find(body, BEGINNING, at)) >= 0:
        end = _find(body, b'"', start + 1)
        if end < 0:
            break
        at = end
        if end - start < LONG_BYTES or body[start - 1 : start] == b"\\":
            continue
        if any(body.find(each, start, end) >= 0 for each in UNCUT):
            continue
        if (string := _decoded(body, start + 1, end)) is None:
            continue
        name = f"{nonce}-{len(strings)}"
        strings[name] = string
        kept += [body[copied : start + 1], name.encode()]
        copied = end
    if not strings:
        return body, strings
    kept.append(body[copied:])
    return b"".join(kept), strings


def _find(body: bytes | bytearray, what: bytes, at: int) -> int:
    """`body.find(what, at)`, in steps between which others get on."""
    while at < len(body):
        if (found := body.find(what, at, at + WINDOW_BYTES + len(what) - 1)) >= 0:
            return found
        at += WINDOW_BYTES
    return -1


def _decoded(body: bytes | bytearray, start: int, end: int) -> str | None:
    """The string; None where it has escapes that the parser should read."""
    num_escapes = body.count(b"\\", start, end)
    if not num_escapes:
        return str(memoryview(body)[start:end], "utf-8")
    slashes = body.count(SLASH, start, end)
    if slashes != num_escapes:  # with an escaped backslash before a slash there are more
        return None
    return str(bytes(body[start:end]).replace(SLASH, b"/"), "utf-8")


def restored(value: Any, strings: Mapping[str, str]) -> Any:
    """The value with every name replaced by its string."""
    if isinstance(value, str):
        return strings.get(value, value)
    if isinstance(value, list):
        return [restored(each, strings) for each in value]
    if isinstance(value, dict):
        return {restored(key, strings): restored(each, strings) for key, each in value.items()}
    return value


def num_values(text: bytes | bytearray, enough: int) -> int:
    """About how many values a JSON text has, strings' commas and brackets counted, too.

    Counting ends where there are more than `enough`; each piece is counted in less than 1 ms.
    """
    total = 0
    for start in range(0, len(text), LONG_BYTES):
        piece = text[start : start + LONG_BYTES]
        total += piece.count(b",") + piece.count(b"[") + piece.count(b"{")
        if total > enough:
            break
    return total
