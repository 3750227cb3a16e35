"""Reports for people: line charts as inline SVG, and one self-contained HTML page around them.

    chart = line_chart([Series("look-m", (0.2, 0.5), (0.4, 0.6))], "kept", "right", "Accuracy")
    html = html_page("Run", "What it is.", [Section("Curves", charts=(chart,))])

Knows matplotlib (imported only here, and only when a chart is drawn) and HTML. Knows nothing of
policies, answers or load: whoever calls brings names and numbers. Pages fetch nothing, run no
script and follow the reader's light or dark mode; every text given is escaped.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from lookm.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Spread = Literal["bars", "band"]
Cell = str | float | int

#: Okabe and Ito's colours for colour-blind readers, in mid tones that show on black and on white.
COLOURS: Final = (
    *("#0f83c9", "#d9731a", "#129b6c", "#c4569a", "#8a6fd1", "#a08a1f"),
    *("#4aa3a2", "#b5524a", "#6f8f2f", "#7a7f87"),
)
MARKS: Final = "osD^vPX*<>"
INSTALL: Final = "pip install 'lookm-server[report]'"

# Matplotlib writes colours as #rrggbb; these two stand for the page's own ink and are replaced.
_INK, _LINE = "#010203", "#040506"


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points (x, y) in the order they are joined, maybe with lower and upper bounds."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    y_low: Sequence[float] | None = None
    y_high: Sequence[float] | None = None
    dashed: bool = False

    def __post_init__(self) -> None:
        columns = [self.x, self.y, self.y_low or self.y, self.y_high or self.y]
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"series {self.name!r}: x, y and bounds need the same length")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a header. Numbers are set to the right; text is escaped."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Card:
    """A title, lines of text and pictures (data URLs, each with what it shows in words), beside
    others; a `wide` one has a row of its own."""

    title: str
    text: Sequence[str] = ()
    images: Sequence[tuple[str, str]] = ()
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a paragraph for each of `text`, charts (SVG from `line_chart`), then tables, then
    cards."""

    title: str
    text: Sequence[str] = ()
    charts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    cards: Sequence[Card] = ()


def line_chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    title: str,
    *,
    percent: str = "",
    x_log: bool = False,
    y_from_zero: bool = True,
    spread: Spread = "bars",
    size_inches: tuple[float, float] = (6.0, 4.2),
) -> str:
    """An inline `<svg>`: lines with marks, and their bounds as error bars or as a band.

    `percent` names the axes ("x", "y", "xy") whose values are shares in [0, 1]. Raises
    `ConfigError` with the install command where matplotlib is missing.
    """
    check_charts()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size_inches, layout="constrained")
        axes = figure.add_subplot()
        for number, one in enumerate(series):
            _draw(axes, one, number, spread)
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        if x_log:
            axes.set_xscale("log")
        if y_from_zero:
            axes.set_ylim(bottom=0)
        _percent(axes, percent)
        axes.grid(True, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if series:
            figure.legend(loc="outside lower left", ncols=3, frameon=False)
        return _svg(figure, title)


def check_charts() -> None:
    """Raise `ConfigError` where charts cannot be drawn: for a start, before hours of work."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(f"reports with charts need matplotlib: {INSTALL}") from None


def html_page(title: str, intro: str, sections: Sequence[Section]) -> str:
    """One HTML file as text. `intro` may have several paragraphs, with empty lines between."""
    body = "\n".join(_section(one) for one in sections)
    paragraphs = "\n".join(f"<p>{_escape(part)}</p>" for part in intro.split("\n\n") if part)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{_escape(title)}</h1>\n{paragraphs}\n{body}\n</main>\n</body>\n</html>\n"
    )


def markdown(table: Table) -> str:
    """The table for a terminal or a README; the first column is set as code."""
    rows = [[f"`{row[0]}`", *map(str, row[1:])] for row in table.rows]
    lines = [list(table.header), ["---"] * len(table.header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _draw(axes: "Axes", one: Series, number: int, spread: Spread) -> None:
    colour = COLOURS[number % len(COLOURS)]
    turn = number // len(COLOURS)
    style = "--" if one.dashed or turn % 2 else "-"
    mark = MARKS[(number + turn) % len(MARKS)]
    axes.plot(one.x, one.y, style, marker=mark, color=colour, label=one.name)
    low, high = one.y_low, one.y_high
    if low is None and high is None:
        return
    low, high = low or one.y, high or one.y
    if spread == "band":
        axes.fill_between(one.x, low, high, color=colour, alpha=0.15, linewidth=0)
        return
    below = [max(0.0, y - bound) for y, bound in zip(one.y, low, strict=True)]
    above = [max(0.0, bound - y) for y, bound in zip(one.y, high, strict=True)]
    axes.errorbar(
        one.x, one.y, (below, above), fmt="none", color=colour, alpha=0.55, linewidth=1.2, capsize=2
    )


def _percent(axes: "Axes", which: str) -> None:
    from matplotlib.ticker import PercentFormatter

    if "x" in which:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    if "y" in which:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _svg(figure: object, title: str) -> str:
    """The figure as `<svg>` text without a prolog, in the page's own ink."""
    import io

    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)  # type: ignore[arg-type,no-untyped-call]
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor").replace(_LINE, "var(--line)")
    return text.replace("<svg", f'<svg role="img" aria-label="{_escape(title)}"', 1).strip()


def _section(one: Section) -> str:
    parts = [f"<h2>{_escape(one.title)}</h2>"]
    parts += [f"<p>{_escape(text)}</p>" for text in one.text]
    if one.charts:
        figures = "\n".join(f'<figure tabindex="0">{chart}</figure>' for chart in one.charts)
        parts.append(f'<div class="charts">\n{figures}\n</div>')
    parts += [_table(table) for table in one.tables]
    if one.cards:
        parts.append(f'<div class="cards">\n{"".join(map(_card, one.cards))}</div>')
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _card(card: Card) -> str:
    images = "".join(
        f'<img src="{_escape(source)}" alt="{_escape(words)}" title="{_escape(words)}">'
        for source, words in card.images
    )
    text = "".join(f"<p>{_escape(line)}</p>" for line in card.text)
    kind = "card wide" if card.wide else "card"
    shown = f'<div class="images">{images}</div>' if images else ""
    return f'<div class="{kind}"><h3>{_escape(card.title)}</h3>{text}{shown}</div>\n'


def _table(table: Table) -> str:
    first = table.rows[0] if table.rows else [""] * len(table.header)
    head = "".join(
        f"<th{_kind(value)}>{_escape(name)}</th>"
        for name, value in zip(table.header, first, strict=True)
    )
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _cell(value: Cell) -> str:
    text = _escape(value) if isinstance(value, str) else f"{value:g}"
    return f"<td{_kind(value)}>{text}</td>"


def _kind(value: Cell) -> str:
    """Numbers, and text that begins like one, stand on the right, and so do their heads."""
    if isinstance(value, str) and value and not (value[0].isdigit() or value[0] in "-−–+±"):
        return ""
    return ' class="number"'


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


_STYLE: Final[dict[Any, Any]] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _LINE,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}

_CSS: Final = """
:root { color-scheme: light dark; --line: #d9dce1; --soft: #f4f5f7; }
@media (prefers-color-scheme: dark) { :root { --line: #3a3f47; --soft: #1d2025; } }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; background: Canvas; color: CanvasText; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
p { max-width: 46rem; margin: .4rem 0; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr));
  gap: 1.5rem; margin: 1rem 0; }
figure { margin: 0; overflow-x: auto; }
svg { width: 100%; min-width: 22rem; height: auto; display: block; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left;
  white-space: nowrap; }
th, td:not(.number, :first-child) { white-space: normal; } td:not(.number) { max-width: 40rem; }
td:not(:first-child) { overflow-wrap: anywhere; }
th.number, td.number { text-align: right; }
th { vertical-align: bottom; background: var(--soft); }
tbody tr:hover { background: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr));
  gap: 1rem; margin: 1rem 0; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem .8rem;
  min-width: 0; }
.card.wide { grid-column: 1 / -1; border: 0; padding: .8rem 0 0; }
.card h3 { font-size: 1rem; margin: 0 0 .2rem; overflow-wrap: anywhere; }
.card p { font-size: .9rem; margin: .15rem 0; }
.images { display: flex; flex-wrap: wrap; gap: .5rem; margin-top: .5rem; }
.images img { width: min(100%, 9.5rem); height: auto; }
@media (max-width: 30rem) { body { font-size: 15px; } main { padding: 1rem .75rem 3rem; }
  th, td { padding: .3rem .45rem; } }
"""
