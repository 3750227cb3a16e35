"""Calls are read out of text, whatever surrounds them and however the text is cut into pieces."""

import json
import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.openai.tools.formats import FORMATS, Call, CallFormat
from server.openai.tools.reader import CallReader, Found

HERMES, MISTRAL, MISTRAL_ARGS = FORMATS
NAMES = ("f", "get_weather")
TAG = '<tool_call>\n{"name": "f", "arguments": {"x": "}</tool_call>\\""}}\n</tool_call>'
CALLED = Call("f", '{"x": "}</tool_call>\\""}')
LIST = '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "get_weather"}]'
NAMED = '[TOOL_CALLS]f[ARGS]{"a": [1, {}]}'


def read(*pieces: str, form: CallFormat = HERMES) -> list[Found]:
    """What is found, neighbouring text as one."""
    reader = CallReader(form, NAMES)
    found: list[Found] = []
    for each in [*(f for piece in pieces for f in reader.push(piece)), *reader.finish()]:
        if found and isinstance(each, str) and isinstance(found[-1], str):
            found[-1] += each
        else:
            found.append(each)
    assert reader.num_calls == sum(isinstance(each, Call) for each in found)
    return found


@pytest.mark.parametrize(
    ("form", "text", "found"),
    [
        (HERMES, TAG, [CALLED]),
        (HERMES, f"Let me see. \n{TAG}\n", ["Let me see.", CALLED]),
        (HERMES, f"{TAG}\n{TAG}", [CALLED, CALLED]),
        (HERMES, f"a {TAG} b", ["a", CALLED, " b"]),
        (HERMES, f"\n\n{TAG}", [CALLED]),
        (HERMES, TAG.removesuffix("</tool_call>"), [CALLED]),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>', [Call("f", "{}")]),
        (MISTRAL, LIST, [Call("f", "{}"), Call("get_weather", "{}")]),
        (MISTRAL, f"Well. {LIST}", ["Well.", Call("f", "{}"), Call("get_weather", "{}")]),
        (MISTRAL_ARGS, NAMED, [Call("f", '{"a": [1, {}]}')]),
        (MISTRAL_ARGS, NAMED * 2, [Call("f", '{"a": [1, {}]}')] * 2),
    ],
)
def test_calls_and_the_text_around_them(form: CallFormat, text: str, found: list[Found]) -> None:
    assert read(text, form=form) == found


@pytest.mark.parametrize(
    "text",
    [
        "", "plain", "1 < 2 and <tool", "<tool_call>", "<tool_call>\n", '<tool_call>\n{"name": "f"',
        "<tool_call>words</tool_call>", "<tool_call>{not json}</tool_call>",
        '<tool_call>{"name": "f", "arguments": 3}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>',
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"name": 3}</tool_call>',
        '<tool_call>{"name": "f"} more</tool_call>', "<tool_call>{]}</tool_call>",
        '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": ' + "9" * 6000 + "}}</tool_call>",
        '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 500 + "1" + "}" * 501 + "</tool_call>",
        " \n ", "ends in space  ",
    ],
)  # fmt: skip
def test_what_is_no_call_is_content_character_for_character(text: str) -> None:
    assert read(text) == ([text] if text else [])


def test_a_call_after_one_that_is_none_is_still_found() -> None:
    assert read(f"<tool_call> oops {TAG}") == ["<tool_call> oops", CALLED]
    assert read(f"<tool_call>{{]}}{TAG}") == ["<tool_call>{]}", CALLED]
    assert read(f"<tool_call>{TAG}") == ["<tool_call>", CALLED]


def test_no_piece_of_a_marker_is_told_before_it_is_clear_what_it_is() -> None:
    reader = CallReader(HERMES, NAMES)
    told = [each for character in f"Hm. {TAG}" for each in reader.push(character)]
    assert told == ["H", "m", ".", CALLED]


FRAGMENTS = st.sampled_from(
    [TAG, "<tool_call>", "</tool_call>", "<tool", '{"name": "f"}', "{", "}", '"', "\n", " ", "a",
     "[TOOL_CALLS]", '[{"name": "f"}]', "[", "]", "f[ARGS]", NAMED, LIST, "\\", "é"]
)  # fmt: skip


@given(
    form=st.sampled_from(FORMATS),
    fragments=st.lists(FRAGMENTS, max_size=12),
    cuts=st.lists(st.integers(0, 400), max_size=20),
)
@example(form=HERMES, fragments=["a", " ", TAG, " ", TAG, " "], cuts=list(range(200)))
def test_every_way_to_cut_a_text_finds_the_same(
    form: CallFormat, fragments: list[str], cuts: list[int]
) -> None:
    text = "".join(fragments)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    found = read(text, form=form)
    assert read(*pieces, form=form) == found
    assert read(*text, form=form) == found
    for each in found:
        if isinstance(each, Call):
            assert isinstance(json.loads(each.arguments), dict)
    if all(isinstance(each, str) for each in found):
        assert "".join(map(str, found)) == text


@pytest.mark.parametrize("text", ["<tool_call>", "<tool_call>{", '<tool_call>{"', " ", "\n{"])
def test_reading_a_hostile_text_takes_time_in_proportion_to_it(text: str) -> None:
    reader, begun_s = CallReader(HERMES, NAMES), time.process_time()
    for _ in range(100_000 // len(text)):
        reader.push(text)
    reader.finish()
    assert time.process_time() - begun_s < 3
