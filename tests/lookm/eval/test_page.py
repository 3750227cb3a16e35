"""Reports: what a page shows, what it never does, and what it says where it cannot draw."""

import re
import sys
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from lookm.errors import ConfigError
from lookm.eval.page import Section, Series, Table, html_page, line_chart

EVIL = '<script>alert(1)</script> & "quotes" $x_1$'


def chart(**options: Any) -> Any:
    bounded = Series("look-m", (0.2, 0.5), (0.4, 0.6), (0.3, 0.5), (0.5, 0.7))
    return line_chart([bounded, Series(EVIL, (0.2,), (0.1,))], "kept", "right", EVIL, **options)


def texts(svg: Any) -> Any:
    return [one.text for one in ElementTree.fromstring(svg).iter() if one.tag.endswith("text")]


def test_a_chart_is_well_formed_svg_that_names_its_axes_series_and_title_literally() -> None:
    said = texts(chart())
    assert {"kept", "right", "look-m", EVIL} <= set(said)


def test_shares_are_written_as_percent() -> None:
    assert "20%" in texts(chart(percent="xy"))
    assert not any("%" in (text or "") for text in texts(chart()))


def test_bounds_are_drawn_as_bars_or_as_a_band() -> None:
    plain = line_chart([Series("a", (0.0, 1.0), (0.4, 0.6))], "x", "y", "t")
    bars, band = chart(), chart(spread="band")
    assert "FillBetween" in band
    assert "FillBetween" not in bars
    assert bars.count("LineCollection") == 1
    assert "LineCollection" not in plain


def test_the_same_numbers_draw_the_same_chart() -> None:
    assert chart() == chart()


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="'a'"):
        Series("a", (1.0, 2.0), (1.0,))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.links = [], []

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        self.tags.append(tag)
        self.links += [
            value for name, value in attrs if name in ("src", "href") and value[:1] != "#"
        ]


def test_a_page_fetches_nothing_runs_nothing_and_escapes_everything() -> None:
    table = Table([EVIL], [[EVIL], [0.25]])
    page = html_page(EVIL, EVIL, [Section(EVIL, [EVIL], [chart()], [table])])
    found = Tags()
    found.feed(page)
    assert not {"script", "link", "iframe", "img"} & set(found.tags)
    assert found.links == []
    assert not re.search(r"url\((?!#)|@import", page)
    assert "prefers-color-scheme: dark" in page


def test_without_matplotlib_the_error_names_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'lookm-server\[report\]'"):
        chart()
