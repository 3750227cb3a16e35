"""Downloads against a scripted transport; real sockets are in `test_media_network`."""

import httpx
import pytest

from server.media import MediaError
from tests.server.media.conftest import PUBLIC, Body, Handler, Loading, encode, picture

PNG = encode(picture())
INSIDE = {"internal": ["10.0.0.5"], "both": [PUBLIC, "127.0.0.1"]}

pytestmark = pytest.mark.anyio


async def refusal(
    loading: Loading, handler: Handler | None, url: str = "https://a.example/", **more: object
) -> MediaError:
    async with loading(handler, **more) as loader:
        with pytest.raises(MediaError) as refused:
            await loader.load(url, param="messages[0].content[1].image_url.url")
    assert refused.value.param == "messages[0].content[1].image_url.url"
    assert url not in refused.value.message
    return refused.value


async def test_request_goes_to_the_checked_address_in_the_name_of_the_host(
    loading: Loading, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=PNG, headers={"set-cookie": "id=1"})

    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:1")
    async with loading(handler) as loader:
        for _ in range(2):
            loaded = await loader.load("https://A.example:8443/x.png?q=1#f")
    assert (loaded.width, loaded.height, loaded.num_bytes) == (8, 6, len(PNG))
    assert loaded.fetch_s > 0
    request = seen[1]
    assert str(request.url) == f"https://{PUBLIC}:8443/x.png?q=1"
    assert request.headers["host"] == "a.example:8443"
    assert request.extensions["sni_hostname"] == "a.example"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["connection"] == "close"
    assert {"cookie", "authorization", "referer"}.isdisjoint(request.headers)


async def test_ipv6_address_is_pinned_in_brackets(loading: Loading) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "http://[2606:4700::1]/"
        return httpx.Response(200, content=PNG)

    async with loading(handler, {"six": ["2606:4700::1"]}) as loader:
        await loader.load("http://six/")


@pytest.mark.parametrize(
    "url",
    [
        "http://internal/",
        "http://both/",
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:169.254.169.254]/latest/meta-data/",
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "/etc/passwd",
    ],
)
async def test_inside_of_the_network_is_out_of_reach(loading: Loading, url: str) -> None:
    assert (await refusal(loading, None, url, names=INSIDE)).code == "invalid_image_url"


@pytest.mark.parametrize(
    "location",
    [
        "http://internal/",
        "//both/x",
        "http://127.0.0.1:80/",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "http://user@a.example/",
        "http://a.example:22/",
    ],
)
async def test_redirect_is_checked_like_the_first_url(loading: Loading, location: str) -> None:
    calls = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(302, headers={"location": location})

    assert (await refusal(loading, handler, names=INSIDE)).code == "invalid_image_url"
    assert len(calls) == 1


async def test_redirects_are_followed_across_hosts_and_counted(loading: Loading) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        n = int(request.url.params.get("n", "0"))
        if n == int(request.url.params["stop"]):
            assert request.headers["host"] == f"h{n}.example"
            return httpx.Response(200, content=PNG)
        target = f"//h{n + 1}.example/?n={n + 1}&stop={request.url.params['stop']}"
        return httpx.Response(307, headers={"location": target})

    async with loading(handler) as loader:
        assert (await loader.load("https://h0.example/?stop=3")).width == 8
    failed = await refusal(loading, handler, "https://h0.example/?stop=4")
    assert failed.code == "image_fetch_failed"
    assert "more than 3 times" in failed.message


async def test_redirect_without_a_target_ends(loading: Loading) -> None:
    failed = await refusal(loading, lambda _: httpx.Response(301))
    assert failed.code == "image_fetch_failed"


async def test_allow_list_holds_for_redirects(loading: Loading) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(302, headers={"location": "https://b.example/"})

    failed = await refusal(loading, handler, allowed_hosts=("a.example",))
    assert "listed" in failed.message


async def test_name_that_changes_its_address_is_caught_at_each_look_up(loading: Loading) -> None:
    names = {"rebind.example": [PUBLIC]}

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.host == PUBLIC
        names["rebind.example"] = ["127.0.0.1"]
        return httpx.Response(302, headers={"location": "/again"})

    failed = await refusal(loading, handler, "http://rebind.example/", names=names)
    assert failed.code == "invalid_image_url"


async def test_next_address_is_tried_where_one_does_not_answer(loading: Loading) -> None:
    tried = []

    def handler(request: httpx.Request) -> httpx.Response:
        tried.append(request.url.host)
        if len(tried) < 3:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(200, content=PNG)

    names = {"many": ["8.8.8.1", "8.8.8.2", "8.8.8.3"]}
    async with loading(handler, names) as loader:
        await loader.load("http://many/")
    assert tried == names["many"]


@pytest.mark.parametrize("status", [199, 201, 204, 206, 304, 400, 401, 403, 404, 500, 503])
async def test_status_other_than_200_is_reported(loading: Loading, status: int) -> None:
    failed = await refusal(loading, lambda _: httpx.Response(status, content=PNG))
    assert failed.code == "image_fetch_failed"
    assert (str(status) in failed.message) or status == 304


async def test_transport_failures_are_reported_without_details(loading: Loading) -> None:
    for kind in (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError, httpx.ReadTimeout):

        def handler(request: httpx.Request, kind: type[httpx.TransportError] = kind):
            raise kind("10.1.2.3 said something", request=request)

        failed = await refusal(loading, handler)
        assert failed.code == "image_fetch_failed"
        assert "10.1.2.3" not in failed.message


async def test_name_that_does_not_resolve_is_reported(loading: Loading) -> None:
    failed = await refusal(loading, None, "http://nowhere/", names={"nowhere": []})
    assert (failed.code, "no address" in failed.message) == ("image_fetch_failed", True)


async def test_compressed_answer_is_refused_and_never_inflated(loading: Loading) -> None:
    body = Body(b"\x1f\x8b" + b"0" * 100)
    headers = {"content-encoding": "gzip"}
    failed = await refusal(loading, lambda _: httpx.Response(200, headers=headers, stream=body))
    assert "compressed" in failed.message
    assert body.produced == 0
    assert body.closed


async def test_declared_size_over_the_limit_is_not_read(loading: Loading) -> None:
    body = Body(b"x")
    response = httpx.Response(200, headers={"content-length": "9" * 40}, stream=body)
    failed = await refusal(loading, lambda _: response, max_bytes=1000)
    assert (failed.code, body.produced, body.closed) == ("image_too_large", 0, True)


@pytest.mark.parametrize("declared", [{}, {"content-length": "10"}, {"content-length": "-1"}])
async def test_body_is_cut_at_the_limit_whatever_was_declared(
    loading: Loading, declared: dict[str, str]
) -> None:
    body = Body(b"x" * 100, times=10**9)
    response = httpx.Response(200, headers=declared, stream=body)
    failed = await refusal(loading, lambda _: response, max_bytes=1000)
    assert failed.code == "image_too_large"
    assert body.produced <= 1100
    assert body.closed


async def test_an_empty_content_encoding_is_none(loading: Loading) -> None:
    headers = {"content-encoding": ""}
    async with loading(lambda _: httpx.Response(200, headers=headers, content=PNG)) as loader:
        assert (await loader.load("https://a.example/")).width == 8


async def test_a_cookie_set_with_a_redirect_comes_back_to_its_host_and_to_no_other(
    loading: Loading,
) -> None:
    seen: list[tuple[str, str | None]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        host, cookie = request.headers["host"], request.headers.get("cookie")
        seen.append((host, cookie))
        if host == "a.example" and cookie is None:
            cookies = [("set-cookie", "id=1; Path=/"), ("set-cookie", "b=\x002"),
                       ("set-cookie", "c=2"), ("set-cookie", "d=" + "x" * 5000)]  # fmt: skip
            return httpx.Response(302, headers=[("location", "/"), *cookies])
        if host == "a.example":
            return httpx.Response(302, headers={"location": "https://b.example/"})
        return httpx.Response(200, content=PNG)

    async with loading(handler) as loader:
        for _ in range(2):
            await loader.load("https://a.example/")
    once = [("a.example", None), ("a.example", "id=1; c=2"), ("b.example", None)]
    assert seen == once * 2
