"""Sizes in bytes as people write them: `2GiB`, `512MiB`, `1.5g`."""

import re

UNITS = {
    "": 1,
    **{letter: 1000 ** (i + 1) for i, letter in enumerate("kmgt")},
    **{f"{letter}i": 1024 ** (i + 1) for i, letter in enumerate("kmgt")},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)


def parse_size(value: object) -> int:
    """Bytes from `"2GiB"`, `"512MiB"`, `"1.5g"` or a plain number.

    >>> parse_size("2GiB")
    2147483648
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise ValueError("give a size such as 2GiB or 512MiB")
    return int(float(match[1]) * UNITS[(match[2] or "").lower()])


def format_size(size_bytes: int) -> str:
    """The shortest of B, KiB, MiB, GiB and TiB that keeps three digits: `1.5 GiB`.

    >>> format_size(1000 * 2**20)
    '1000 MiB'
    """
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1023.5 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if size >= 999.5 else f"{size:.3g} {unit}"
