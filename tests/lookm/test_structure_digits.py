"""A model that would write digits for ever ends; formats that nobody knows are ignored."""

import json
from typing import Any

import pytest

from lookm.grammar.digits import MAX_DIGITS, DigitRun
from lookm.grammar.matcher import Vocabulary
from lookm.grammar.schema import checked
from lookm.types import Structure
from tests.lookm.ascii_tokenizer import END, AsciiProcessor

NUMBERS = [
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "number"},
    {"type": "integer"},
    {"type": "integer", "minimum": 10**17},
    {"type": "number", "maximum": -1},
    {"enum": [1, 10**50]},
    {},
]


def written(schema: object, preferred: str, most: int = 600) -> str | None:
    """What a model says that prefers these characters to others; None where it does not end."""
    processor = AsciiProcessor()
    vocabulary = Vocabulary(processor.tokenizer_json, [END])
    answer = vocabulary.compile(Structure("json_schema", json.dumps(schema))).answer()
    ids: list[int] = []
    for _ in range(most):
        bits = answer.allowed()
        allowed = [i for i in range(8 * len(bits)) if bits[i // 8] >> i % 8 & 1]
        texts = {i: vocabulary.bytes_of(i).decode() for i in allowed if i != END}
        liked = [i for character in preferred for i, text in texts.items() if text == character]
        ids.append(next(iter(liked or texts), END))
        if ids[-1] == END:
            break
        answer.advance(ids[-1])
        assert answer.failure is None
        if answer.complete:
            break
    else:
        return None
    return str(processor.decode(ids))


@pytest.mark.parametrize("preferred", ["0123456789.", "9.eE", "0.", ".e0", "1-+eE."])
@pytest.mark.parametrize("schema", NUMBERS)
def test_a_number_ends_and_fits(schema: Any, preferred: str) -> None:
    schema = {
        "type": "object",
        "properties": {"x": schema},
        "required": ["x"],
        "additionalProperties": False,
    }
    text = written(schema, preferred)
    assert text is not None
    assert "x" in json.loads(text)


def test_a_string_of_digits_ends_and_may_be_longer_than_a_number() -> None:
    text = written({"type": "string", "pattern": "^[0-9]+$"}, "7")
    assert text is not None
    assert MAX_DIGITS < len(text) < 300


def test_digits_that_a_schema_asks_for_are_written() -> None:
    assert written({"type": "string", "pattern": "^0{300}$"}, "0") == f'"{"0" * 300}"'


def test_digits_are_counted_from_where_the_json_begins() -> None:
    pieces = {"alternatives": [], "opened": ["<call>"], "optional": True}
    run = DigitRun.of(Structure("json_pieces", json.dumps(pieces)))
    assert run is not None
    zeros = "0" * MAX_DIGITS
    was_long = []
    for text in ('the "quote', 10 * zeros, "<ca", "ll>", '{"0' + zeros, '":' + zeros):
        run.push(text.encode())
        was_long.append(run.is_long)
    assert was_long == [False, False, False, False, False, True]
    bare = DigitRun.of(Structure("json_pieces", json.dumps(pieces | {"opened": [""]})))
    assert bare is not None
    bare.push(b"see " + b"0" * 300)
    assert not bare.is_long


@pytest.mark.parametrize("name", ["password", "path", "binary", "json-string", "my-own"])
def test_a_format_that_nobody_knows_is_ignored(name: str) -> None:
    schema = {
        "properties": {"format": {"type": "string", "format": name}, "b": {"$ref": "#/$defs/b"}},
        "$defs": {"b": {"anyOf": [{"type": "string", "format": name}, {"format": "date"}]}},
        "enum": [{"format": name}],
    }
    assert checked(schema, "response_format") == {
        "properties": {"format": {"type": "string"}, "b": {"$ref": "#/$defs/b"}},
        "$defs": {"b": {"anyOf": [{"type": "string"}, {"format": "date"}]}},
        "enum": [{"format": name}],
    }
