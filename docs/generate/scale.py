"""What docs/scale.md shows of the routing simulation, which is run for it."""

from collections.abc import Iterator
from pathlib import Path

from docs.generate.marked import between
from server.bench.routing import Fleet, Trace, compare, table

PAGE = Path(__file__).parents[1] / "scale.md"
STORES = (24_000, 96_000, 384_000)


def routing() -> Iterator[str]:
    """A table for each size of the stores."""
    for tokens in STORES:
        gib = tokens // 2048  # at 512 KiB a token
        yield f"Stores of {tokens:,} tokens ({gib} GiB of a 7B model's):"
        yield ""
        yield from table(compare(Trace(), Fleet(store_tokens=tokens)))
        yield ""


def page(before: str) -> str:
    """The page with its tables written again."""
    return between(before, "routing", "\n".join(routing()))


def write() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text()))
