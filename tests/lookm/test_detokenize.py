"""The detokenizer: nothing shown too early, nothing lost, stop strings across token borders."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookm.detokenize import Detokenizer


def byte_decode(ids: Any) -> Any:
    """A byte-level tokenizer: each id is one byte of UTF-8."""
    return bytes(ids).decode("utf-8", errors="replace")


def shown(text: Any, stop: Any = ()) -> Any:
    detokenizer = Detokenizer(byte_decode, stop)
    parts = []
    for byte in text.encode():
        parts.append(detokenizer.push(byte))
        if detokenizer.stopped:
            break
    parts.append(detokenizer.finish())
    return parts, detokenizer


@given(st.text(min_size=1))
def test_pieces_add_up_to_the_text(text: Any) -> None:
    parts, _ = shown(text)
    assert "".join(parts) == text


def test_a_split_character_is_held_until_it_is_whole() -> None:
    parts, _ = shown("é!")
    assert parts == ["", "é", "!", ""]


@given(st.text(alphabet="abc", max_size=12), st.text(alphabet="abc", min_size=1, max_size=3))
def test_a_stop_string_ends_the_text_before_it(text: Any, stop: Any) -> None:
    parts, detokenizer = shown(text, (stop,))
    assert "".join(parts) == text.split(stop)[0]
    assert detokenizer.stopped == (stop in text)


@given(
    st.text(alphabet="ab", max_size=12),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_the_first_completed_stop_string_wins(text: Any, stops: Any) -> None:
    parts, _ = shown(text, tuple(stops))
    completed = [end for end in range(len(text) + 1) if any(text[:end].endswith(s) for s in stops)]
    if not completed:
        assert "".join(parts) == text
    else:
        first = text[: completed[0]]
        assert "".join(parts) == min((first.split(s)[0] for s in stops), key=len)


@given(
    st.text(alphabet="ab", max_size=12),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(0, 8),
)
def test_a_stop_string_completed_within_min_tokens_ends_nothing(
    text: Any, stops: Any, min_tokens: Any
) -> None:
    detokenizer = Detokenizer(byte_decode, tuple(stops), min_tokens)
    got = ""
    for byte in text.encode():
        got += detokenizer.push(byte)
        if detokenizer.stopped:
            break
    got += detokenizer.finish()
    ends = [(end, s) for end in range(min_tokens + 1, len(text) + 1) for s in stops]
    hits = [(end, s) for end, s in ends if text[:end].endswith(s)]
    first = [(end - len(s), s) for end, s in hits if end == hits[0][0]]
    assert detokenizer.stopped_by == (min(first)[1] if hits else None)
    assert got == (text[: min(first)[0]] if hits else text)


def test_a_token_that_completes_two_stop_strings_stops_at_the_earlier() -> None:
    words = ["x STOP and END", "y"]
    detokenizer = Detokenizer(lambda ids: "".join(words[i] for i in ids), ("END", "STOP"))
    assert (detokenizer.push(0), detokenizer.stopped_by) == ("x ", "STOP")


def test_an_ending_that_may_become_a_stop_string_is_held_back_and_released() -> None:
    detokenizer = Detokenizer(byte_decode, ("END",))
    assert [detokenizer.push(b) for b in b"xENx"] == ["x", "", "", "ENx"]


@pytest.mark.parametrize("stop", [(), ("zz",)])
def test_an_incomplete_character_at_the_end_is_shown_as_a_replacement(stop: Any) -> None:
    detokenizer = Detokenizer(byte_decode, stop)
    assert detokenizer.push("é".encode()[0]) == ""
    assert detokenizer.finish() == "\ufffd"
