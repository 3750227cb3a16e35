"""The same routes with a slash at their end, and behind a prefix that a proxy strips or leaves."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send
from typer.testing import CliRunner

from server import cli, health
from server.middleware import PAGES, PAGES_ASSETS
from server.openai import routes, tokenize
from server.paths import OWN_FOLDERS, own_path
from server.playground import route as playground
from server.settings import Settings
from tests.server.requests import CHAT, chat, events, says, serving
from tests.server.test_errors import check_error

pytestmark = pytest.mark.anyio

ROOT = "/tools/lookm"
LOCAL_URL = re.compile(r"""(?:src|href|url)\s*[=:]\s*["']([^"'#{]+)["']""")


class Proxy:
    """Shows an app under `ROOT` and nothing else; `strips`: the app does not see the prefix."""

    def __init__(self, app: ASGIApp, *, strips: bool) -> None:
        self._app = app
        self._strips = strips

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        assert f"{path}/".startswith(f"{ROOT}/"), f"asks for {path}, which is another server's"
        if self._strips:
            path = path[len(ROOT) :] or "/"
        await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, send)


@asynccontextmanager
async def behind_proxy(*, strips: bool, **fields: str) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(model="fake", root_path=ROOT, **fields)
    async with serving(settings, says) as (_, _engine, app):
        transport = httpx.ASGITransport(Proxy(app, strips=strips))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


@pytest.fixture(params=[True, False], ids=["strips", "leaves"])
async def proxied(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    async with behind_proxy(strips=request.param) as client:
        yield client


async def loaded(client: httpx.AsyncClient, page: str) -> list[str]:
    """The paths that a browser loads for a page, each of which must be there."""
    response = await client.get(page)
    assert response.status_code == 200, page
    base = re.search(r'<base href="([^"]+)">', response.text)
    url = response.url.join(base[1]) if base else response.url
    found = [url.join(each).path for each in LOCAL_URL.findall(response.text)]
    for path in found:
        assert (await client.get(path)).status_code == 200, path
    return found


async def test_slashes_at_the_end_are_dropped_and_no_body_is_lost(
    client: httpx.AsyncClient,
) -> None:
    for path in (CHAT + "/", CHAT + "//"):
        answer = await client.post(path, json=chat())
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"].startswith("word0")
    for path in ("/v1/models/", "/v1/models/fake/", "/healthz/", "/docs/", "//"):
        assert (await client.get(path)).status_code == 200, path
    check_error(await client.get("/nothing/"), 404, "not_found", None)


async def test_slashes_open_nothing_that_asks_for_a_key() -> None:
    async with serving(Settings(model="fake", api_keys="k"), says) as (client, *_):
        for path in ("/v1/models/", "//v1/models", "/metrics/", "/healthz/../v1/models"):
            assert (await client.get(path)).status_code in (401, 404), path
        assert (await client.post(CHAT + "/", json=chat())).status_code == 401


async def test_all_of_it_works_behind_a_proxy(proxied: httpx.AsyncClient) -> None:
    body = chat(stream=True)
    answer = await proxied.post(ROOT + CHAT, json=body)
    assert events(answer.text)[1]["choices"][0]["delta"] == {"content": "one"}
    for path in ("/healthz", "/ping/", "/v1/models", "/v1/models/fake", "/metrics", "/version"):
        assert (await proxied.get(ROOT + path)).status_code == 200, path
    check_error(await proxied.get(f"{ROOT}/nothing"), 404, "not_found", None)


async def test_the_pages_load_what_they_need_through_the_proxy(proxied: httpx.AsyncClient) -> None:
    for page in (f"{ROOT}/", ROOT):  # with and without its slash
        found = await loaded(proxied, page)
        assert f"{ROOT}/playground/main.js" in found
        assert f"{ROOT}/docs" in found
    assert f"{ROOT}/openapi.json" in await loaded(proxied, f"{ROOT}/docs")
    assert f"{ROOT}/static-offline-docs/redoc.standalone.js" in await loaded(
        proxied, f"{ROOT}/redoc"
    )
    schema = (await proxied.get(f"{ROOT}/openapi.json")).json()
    assert schema["servers"] == [{"url": ROOT}]
    assert CHAT in schema["paths"]


@pytest.mark.parametrize("strips", [True, False])
async def test_what_is_open_without_a_key_is_open_there(strips: bool) -> None:
    async with behind_proxy(strips=strips, api_keys="k") as client:
        for path in ("/", "/healthz", "/docs", "/openapi.json", "/playground/main.js"):
            assert (await client.get(ROOT + path)).status_code == 200, path
        for path in ("/v1/models", "/metrics"):
            assert (await client.get(ROOT + path)).status_code == 401, path


async def test_without_the_proxy_it_answers_as_well() -> None:
    async with serving(Settings(model="fake", root_path=ROOT), says) as (client, *_):
        assert (await client.post(CHAT, json=chat())).status_code == 200
        assert f"{ROOT}/playground/main.js" in await loaded(client, "/")


def test_only_a_whole_segment_is_the_prefix() -> None:
    assert own_path("/lookmore/x", "/lookm") == "/lookmore/x"
    assert own_path("/lookm", "/lookm") == "/"
    assert own_path("/x", "") == "/x"


@pytest.mark.parametrize("root_path", ["lookm", "/a b", "/a//b", "/v1", "/v1/x", '/"><script>'])
def test_a_prefix_that_cannot_work_is_refused_in_one_line(root_path: str) -> None:
    result = CliRunner().invoke(cli.app, ["serve", "--root-path", root_path])
    assert result.exit_code == 2
    (line,) = result.output.strip().splitlines()
    assert line.startswith("error: --root-path (LOOKM_ROOT_PATH): ")
    with pytest.raises(ValidationError):
        Settings(root_path=root_path)


def test_the_folders_of_the_server_are_known() -> None:
    routers = (health.router, routes.router, tokenize.router, playground.router)
    paths = [str(route.path) for router in routers for route in router.routes]  # type: ignore[attr-defined]
    folders = {path.split("/")[1] for path in (*paths, *PAGES) if path.count("/") > 1}
    assert folders | {asset.strip("/") for asset in PAGES_ASSETS} == OWN_FOLDERS
