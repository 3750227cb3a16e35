"""Calls are read out of text, whatever surrounds them and however the text is cut into pieces."""

import json
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.openai.tools.formats import (
    FORMATS,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGS,
    Call,
    CallFormat,
)
from server.openai.tools.reader import Arguments, Begun, CallReader, Found, with_calls

NAMES = ("f", "get_weather")
TAG = '<tool_call>\n{"name": "f", "arguments": {"x": "}</tool_call>\\""}}\n</tool_call>'
CALLED = Call("f", '{"x": "}</tool_call>\\""}')
LIST = '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "get_weather"}]'
NAMED = '[TOOL_CALLS]f[ARGS]{"a": [1, {}]}'
BARE = '{"name": "f", "parameters": {"a": "}{"}}'
BARE_CALL = Call("f", '{"a": "}{"}')


def read(*pieces: str, form: CallFormat = HERMES) -> list[str | Call]:
    """What is found, neighbouring text as one."""
    reader = CallReader(form, NAMES)
    pushed = [*(f for piece in pieces for f in reader.push(piece)), *reader.finish()]
    found: list[str | Call] = []
    for each in with_calls(pushed):
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
        (
            MISTRAL,
            LIST.replace("{}}", '{}, "id": "a}"}'),
            [Call("f", "{}"), Call("get_weather", "{}")],
        ),
        (LLAMA, BARE, [BARE_CALL]),
        (LLAMA, f"\n {BARE}\n", [BARE_CALL]),
        (LLAMA, f"<|python_tag|>{BARE}", [BARE_CALL]),
        (LLAMA, f"Well. <|python_tag|>{BARE}", ["Well.", BARE_CALL]),
        (LLAMA, f"{BARE}; {BARE}", [BARE_CALL, f"; {BARE}"]),
        (LLAMA, '{"type": "function", "name": "f", "parameters": {}}', [Call("f", "{}")]),
        (LLAMA, '{"parameters": {"a":1}, "name": "f"}', [Call("f", '{"a": 1}')]),
    ],
)
def test_calls_and_the_text_around_them(
    form: CallFormat, text: str, found: list[str | Call]
) -> None:
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
        "<tool_call>{]}</tool_call>", '<tool_call>{"name" "f", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {"x": NaN}, "name": "f"}</tool_call>',
        '<tool_call>{"arguments": {"x": 1e999}, "name": "f"}</tool_call>',
        '<tool_call>{"arguments": {"x": "\\ud800"}, "name": "f"}</tool_call>',
        '<tool_call>{"arguments": {"x": ' + "9" * 6000 + '}, "name": "f"}</tool_call>',
        " \n ", "ends in space  ",
    ],
)  # fmt: skip
def test_what_is_no_call_is_content_character_for_character(text: str) -> None:
    assert read(text) == ([text] if text else [])


def test_a_call_after_one_that_is_none_is_still_found() -> None:
    assert read(f"<tool_call> oops {TAG}") == ["<tool_call> oops", CALLED]
    assert read(f"<tool_call>{{]}}{TAG}") == ["<tool_call>{]}", CALLED]
    assert read(f"<tool_call>{TAG}") == ["<tool_call>", CALLED]


def found_by_character(text: str, form: CallFormat = HERMES) -> list[Found]:
    reader = CallReader(form, NAMES)
    return [*(each for character in text for each in reader.push(character)), *reader.finish()]


def test_no_piece_of_a_marker_is_given_before_it_is_clear_what_it_is() -> None:
    begun = Begun("f")
    found = found_by_character(f"Hm. {TAG}")
    assert found[:4] == ["H", "m", ".", begun]
    assert with_calls(found[3:]) == [CALLED]


WRITTEN = '{"x" :\n[1, {"y": "}"}] }'


@pytest.mark.parametrize(
    ("form", "before", "after"),
    [
        (HERMES, '<tool_call>{"name": "f", "arguments": ', "}</tool_call>"),
        (
            HERMES,
            '<tool_call>\n{"id": {"a": {}}, "name":"f",\n"arguments":',
            ', "x": "{"} </tool_call>',
        ),
        (MISTRAL, '[TOOL_CALLS][ {"name": "f", "arguments": ', '} , {"name": "nobody"}]'),
        (MISTRAL_ARGS, "[TOOL_CALLS]f[ARGS]", " "),
        (LLAMA, '{"name": "f", "parameters": ', "}"),
    ],
)
def test_arguments_are_given_as_they_are_written(form: CallFormat, before: str, after: str) -> None:
    reader = CallReader(form, NAMES)
    assert [each for character in before for each in reader.push(character)] == []
    assert reader.push("{") == [Begun("f"), Arguments("{")]
    for character in WRITTEN[1:]:
        assert reader.push(character) == [Arguments(character)]
    rest = [*reader.push(after), *reader.finish()]
    assert rest == ([' , {"name": "nobody"}]'.strip()] if "nobody" in after else [])


BEGUN = '<tool_call>{"name": "f", "arguments": '


@pytest.mark.parametrize(
    ("form", "text", "found"),
    [
        (HERMES, BEGUN, [BEGUN]),
        (HERMES, BEGUN + '{"x": "y', [Call("f", '{"x": "y')]),
        (HERMES, BEGUN + '{"x": NaN}}</tool_call>', [Call("f", '{"x": NaN}')]),
        (HERMES, BEGUN + '{"x": 1e999}}</tool_call> b', [Call("f", '{"x": 1e999}'), "b"]),
        (HERMES, BEGUN + "{]}</tool_call>", [Call("f", "{]")]),
        (HERMES, BEGUN + "{}\n</tool_call>", [Call("f", "{}")]),
        (HERMES, BEGUN + "{}", [Call("f", "{}")]),
        (HERMES, BEGUN + '{}, "id": "', [Call("f", "{}")]),
        (HERMES, BEGUN + "{}} more</tool_call>", [Call("f", "{}"), "more</tool_call>"]),
        (HERMES, BEGUN + "{}}\n" + TAG, [Call("f", "{}"), CALLED]),
        (HERMES, '<tool_call>{"name": "f"} more', [Call("f", "{}"), "more"]),
        (MISTRAL, LIST[:-1], [Call("f", "{}"), Call("get_weather", "{}")]),
        (MISTRAL, LIST.replace("get_weather", "g"), [Call("f", "{}"), ', {"name": "g"}]']),
        (MISTRAL, LIST.replace('"f"', '"g"'), [LIST.replace('"f"', '"g"')]),
        (MISTRAL, LIST.replace("[{", "[3, {"), [LIST.replace("[{", "[3, {")]),
        (
            MISTRAL,
            LIST.replace("}, {", "}, 3, {"),
            [Call("f", "{}"), ', 3, {"name": "get_weather"}]'],
        ),
        (MISTRAL, LIST.replace("}}, {", "}, {"), [Call("f", "{}")]),
        (MISTRAL_ARGS, NAMED[:-2], [Call("f", '{"a": [1, {}')]),
        (MISTRAL_ARGS, NAMED.replace("f[", "g["), [NAMED.replace("f[", "g[")]),
        (LLAMA, BARE[:-5], [Call("f", '{"a": "')]),
        (LLAMA, f"See {BARE}", [f"See {BARE}"]),
        (LLAMA, '{"name": "f"}', ['{"name": "f"}']),
        (LLAMA, BARE.replace("parameters", "arguments"), [BARE.replace("parameters", "arguments")]),
        (LLAMA, '{"answer": {"name": "f"}} and', ['{"answer": {"name": "f"}} and']),
        (LLAMA, "<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
    ],
)
def test_a_call_that_has_begun_stays_one_with_what_the_model_wrote(
    form: CallFormat, text: str, found: list[str | Call]
) -> None:
    assert read(text, form=form) == found
    assert read(*text, form=form) == found


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
    max_leaves=8,
)
WRAPPED = [
    (HERMES, '<tool_call>\n{"name": "f", "arguments": %s}\n</tool_call>'),
    (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": %s, "id": "a1b2c3d4e"}]'),
    (MISTRAL_ARGS, "[TOOL_CALLS]f[ARGS]%s"),
    (LLAMA, '{"name": "f", "parameters": %s}'),
]


@pytest.mark.parametrize(("form", "wrapped"), WRAPPED)
@settings(max_examples=25)
@given(given=st.dictionaries(st.text(), ANYTHING), indent=st.sampled_from([None, 1]))
def test_arguments_are_given_to_the_letter(
    form: CallFormat, wrapped: str, given: dict[str, Any], indent: int | None
) -> None:
    written = json.dumps(given, ensure_ascii=False, indent=indent)
    assert read(*(wrapped % written), form=form) == [Call("f", written)]


FRAGMENTS = st.sampled_from(
    [TAG, "<tool_call>", "</tool_call>", "<tool", '{"name": "f"}', "{", "}", '"', "\n", " ", "a",
     "[TOOL_CALLS]", '[{"name": "f"}]', "[", "]", "f[ARGS]", NAMED, LIST, "\\", "é",
     BEGUN, BARE, "<|python_tag|>", '{"name": "f", "parameters": ', ",", '{"x": 1}']
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
            assert each.name in NAMES
            assert each.arguments.startswith("{")
    if all(isinstance(each, str) for each in found):
        assert "".join(map(str, found)) == text


@pytest.mark.parametrize(
    "text",
    ["<tool_call>", "<tool_call>{", '<tool_call>{"', " ", "\n{", BEGUN, BEGUN + "{", TAG, LIST],
)
def test_reading_a_hostile_text_takes_time_in_proportion_to_it(text: str) -> None:
    def spent_s(characters: int) -> float:
        reader, begun_s = CallReader(HERMES, NAMES), time.process_time()
        for _ in range(characters // len(text)):
            reader.push(text)
        reader.finish()
        return time.process_time() - begun_s

    # The square of the length would be sixty-four times as long; a busy machine doubles a time.
    assert spent_s(80_000) < 24 * min(spent_s(10_000) for _ in range(3))
