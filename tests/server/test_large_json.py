"""Large bodies are parsed without their pictures, and to the same value."""

import json
import threading
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_core import from_json

from server.api_errors import ApiError
from server.openai.request import large_json, parse
from server.openai.request.parse import LARGE_BYTES, MAX_VALUES, receive
from server.openai.schemas.requests import ChatRequest
from server.turns import Turns
from tests.server.requests import chat, image

FRAGMENTS = st.sampled_from(
    [b'"data:', b'"', b"data:", b"\\", b'\\"', b"\n", b"a", b"aaaaaaaaa", b",", b":", b"[", b"]",
     b"{", b"}", b'"url":', b"\\/", b"\\\\", "é".encode(), b"\xff", b"1", b" "]
)  # fmt: skip
PLACES = st.recursive(
    st.text(max_size=3) | st.just("data:" + "a" * 20) | st.just('data:"' + "b" * 20),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("data:" + "k" * 20), inner),
)


def from_json_cut(body: bytes) -> Any:
    rest, strings = large_json.cut(body)
    return large_json.restored(from_json(rest), strings)


def outcome(parse: Any, body: bytes) -> Any:
    try:
        return parse(body)
    except ValueError:
        return "not JSON"


@given(PLACES)
def test_cutting_changes_no_value(value: Any) -> None:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "LONG_BYTES", 8)
        assert outcome(from_json_cut, body) == outcome(from_json, body)


@given(st.lists(FRAGMENTS, max_size=20).map(b"".join))
@example(b'["x"data:aaaaaaaaa"]')
@example(b'["\\\\"data:aaaaaaaaa"]')
@example(b'["data:aaaaaaaaa\xff"]')
@example(b'"data:aaaaaaaaa')
def test_cutting_makes_no_json_of_what_is_none(body: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "LONG_BYTES", 8)
        assert outcome(from_json_cut, body) == outcome(from_json, body)


async def _pieces(body: bytes) -> Any:
    size = 2**16
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.anyio
async def test_the_parser_never_sees_the_pictures_of_a_large_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        parse, "from_json", lambda text: (seen.append(len(text)), from_json(text))[1]
    )
    urls = ["data:image/jpeg;base64," + letter * 2 * 10**6 for letter in "abc"]
    body = json.dumps(chat(*[image(url) for url in urls], "hm")).encode()
    parsed = await receive(ChatRequest, _pieces(body), Turns(1))
    assert seen == [seen[0]]
    assert seen[0] < 2000
    assert [part.image_url.url for part in parsed.messages[0].content[:3]] == urls  # type: ignore


def test_slashes_that_are_escaped_are_cut_too() -> None:
    body = json.dumps(chat(image("data:image/png;base64," + "a/b" * 10**5))).replace("/", "\\/")
    assert len(large_json.cut(body.encode())[0]) < 1000
    assert from_json_cut(body.encode()) == json.loads(body)


@pytest.mark.anyio
async def test_more_text_than_any_context_has_is_not_even_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parse, "from_json", None)
    body = json.dumps(chat("a b\n" * 2_500_000)).encode()
    with pytest.raises(ApiError) as refused:
        await receive(ChatRequest, _pieces(body), Turns(1))
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.anyio
async def test_a_large_body_that_is_wrong_names_the_field() -> None:
    url = "data:image/jpeg;base64," + "a" * 5 * 10**6
    body = json.dumps(chat(image(url), stop=url)).encode()
    with pytest.raises(ApiError) as refused:
        await receive(ChatRequest, _pieces(body), Turns(1))
    assert refused.value.param == "stop"
    with pytest.raises(ApiError) as refused:
        await receive(ChatRequest, _pieces(body[:-1]), Turns(1))
    assert refused.value.code == "invalid_json"


@pytest.mark.anyio
@pytest.mark.parametrize("value", [[0] * (MAX_VALUES + 2), [[{}]] * MAX_VALUES])
async def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    monkeypatch.setattr(parse, "from_json", None)
    body = json.dumps(chat("hm") | {"metadata": value}, separators=(",", ":")).encode()
    with pytest.raises(ApiError, match="more than 131072 values"):
        await receive(ChatRequest, _pieces(body), Turns(1))


@pytest.mark.anyio
async def test_parsing_leaves_the_event_loop_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = []
    monkeypatch.setattr(
        parse, "from_json", lambda text: (threads.append(threading.current_thread()), {})[1]
    )
    for size in (LARGE_BYTES // 2, LARGE_BYTES + 1):
        body = json.dumps(chat("a" * size)).encode()
        await receive(ChatRequest, _pieces(body), Turns(1))
    main = threading.main_thread()
    assert threads[0] is main
    assert threads[-1] is not main
