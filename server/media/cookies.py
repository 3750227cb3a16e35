"""Cookies that live as long as one download: what a host sets with a redirect, for that host alone.

Some image hosts redirect to the same address until a cookie comes back. Nothing is kept beyond the
redirects of one URL, and no other host (nor another port, nor http after https) sees it.
"""

import re

import httpx

MAX_CHARS = 4096
PAIR = re.compile(r"[!#-+\--:<-~]+=[ -:<-~]*")  # ASCII without control characters and semicolons


class Cookies:
    """What was set during one download, by where."""

    def __init__(self) -> None:
        self._set: dict[tuple[str, bytes], dict[str, str]] = {}

    def add(self, url: httpx.URL, response: httpx.Response) -> None:
        """Remember what the response sets; what is too much, or no cookie, is not."""
        here = self._set.setdefault((url.scheme, url.netloc), {})
        for header in response.headers.get_list("set-cookie"):
            pair = header.partition(";")[0].strip()
            name = pair.partition("=")[0]
            held = sum(map(len, here.values()))
            if PAIR.fullmatch(pair) and held + len(pair) <= MAX_CHARS:
                here[name] = pair

    def header(self, url: httpx.URL) -> dict[str, str]:
        """The header of a request to `url`, if there is anything to say."""
        here = self._set.get((url.scheme, url.netloc))
        return {"cookie": "; ".join(here.values())} if here else {}
