"""The page at `/` as the server sends it: whole, small, its own, and only where it is wanted."""

import base64
import re
from hashlib import sha256

import httpx
import pytest

from lookm.picture import legend, veil
from server.playground.route import FILES
from server.settings import Settings
from tests.server.requests import says, serving
from tests.server.test_errors import check_error

pytestmark = pytest.mark.anyio

MOST_BYTES = 200_000
MODULE = re.compile(rb'from "\./([^"]+)"')
ASSET = re.compile(rb'(?:src|href)="playground/([^"]+)"')


async def test_the_page_and_all_it_loads_come_from_the_server(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    wanted = [name.decode() for name in ASSET.findall(page.content)]
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        response = await client.get(f"/playground/{name}")
        assert response.status_code == 200, name
        wanted += [found.decode() for found in MODULE.findall(response.content)]
    assert seen == FILES.keys() - {"index.html"}, "a file that nothing loads, or that is missing"
    assert sum(map(len, FILES.values())) < MOST_BYTES


async def test_nothing_is_inline_and_nothing_comes_from_elsewhere(
    client: httpx.AsyncClient,
) -> None:
    for name, content in FILES.items():
        without_names = content.replace(b"http://www.w3.org/2000/svg", b"")
        assert not re.search(rb"https?://|[\"'(]//", without_names), name
        assert not re.search(rb"innerHTML|outerHTML|insertAdjacentHTML|eval\(", content), name
        assert not re.search(rb"localStorage|document\.cookie", content), name
    assert not re.search(rb"<style|\sstyle=|\son\w+=|<script>|javascript:", FILES["index.html"])
    for path in ("/", "/playground/main.js"):
        policy = (await client.get(path)).headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy


async def test_it_is_not_sent_again_while_it_is_the_same(client: httpx.AsyncClient) -> None:
    tag = (await client.get("/")).headers["etag"]
    again = await client.get("/", headers={"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")


async def test_other_names_are_not_found(client: httpx.AsyncClient) -> None:
    for name in ("route.py", "__init__.py", "nothing.js", "%2e%2e/settings.py"):
        check_error(await client.get(f"/playground/{name}"), 404, "not_found", None)


async def test_it_can_be_turned_off() -> None:
    for keys in ({}, {"api_keys": "k"}):
        settings = Settings(model="fake", playground=False, **keys)
        async with serving(settings, says) as (client, _, _app):
            for path in ("/", "/playground/main.js"):
                check_error(await client.get(path), 404, "not_found", None)


def test_the_page_and_the_library_draw_the_same_in_the_same_words() -> None:
    said = re.findall(r'text: "([^"]+)"', FILES["legend.js"].decode())
    assert said == [
        legend.CLEAR,
        legend.PARTLY,
        legend.DROPPED,
        legend.MERGED,
        legend.UNKNOWN,
        legend.UNSEEN,
    ]
    paint = FILES["paint.js"].decode()
    for name in ("VEILED", "STRIPED", "FAINT", "WASHED", "HATCHED", "STRIPE_GAP"):
        assert f"const {name} = {getattr(veil, name)};" in paint, name
    assert 'const VEIL = "{}, {}, {}";'.format(*veil.VEIL) in paint
    assert 'const STRIPE = "#{:02x}{:02x}{:02x}";'.format(*veil.STRIPE) in paint


async def test_the_docs_run_their_own_scripts_alone(client: httpx.AsyncClient) -> None:
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        response = await client.get(path)
        scripts, styles = re.findall(
            r"(?:script|style)-src ([^;]*);", response.headers["content-security-policy"]
        )
        assert "unsafe" not in scripts, path
        inline = re.findall(r"<script>(.+?)</script>", response.text, re.DOTALL)
        digests = [base64.b64encode(sha256(each.encode()).digest()).decode() for each in inline]
        assert scripts.split() == ["'self'", *(f"'sha256-{digest}'" for digest in digests)], path
        assert "http" not in scripts + styles
        assert (await client.head(path)).headers["content-security-policy"]
    for path in ("/healthz", "/v1/models", "/docs/none"):
        assert "content-security-policy" not in (await client.get(path)).headers
