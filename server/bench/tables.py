"""Rows of words as a table: aligned for a terminal, or Markdown. The first row is the header."""

from collections.abc import Iterator, Sequence

Rows = Sequence[Sequence[str]]


def text_table(rows: Rows) -> Iterator[str]:
    """Lines with aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        yield "  ".join(cells).rstrip()


def markdown_table(rows: Rows) -> Iterator[str]:
    """Lines of a GitHub table."""
    header, *body = rows
    yield _markdown_row(header)
    yield "|" + "---|" * len(header)
    for row in body:
        yield _markdown_row(row)


def seconds(value: float | None) -> str:
    """`12.3 s`, `1.23 s`, `45 ms`; `-` where there is none."""
    if value is None:
        return "-"
    if value < 0.1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


def _markdown_row(row: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|"
