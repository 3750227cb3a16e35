"""Parts of a Markdown page that are written by a program, between two comments."""

import re


def between(page: str, name: str, text: str) -> str:
    """`page` with `text` between `<!-- NAME -->` and `<!-- /NAME -->`, which it must have once."""
    part = f"<!-- {name} -->\n{text.rstrip()}\n<!-- /{name} -->"
    pattern = re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
    page, found = pattern.subn(lambda _: part, page)
    assert found == 1, name
    return page
