"""Structures that cannot be followed are refused with the reason, and none costs much time."""

import json
import time
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from lookm import RequestError
from lookm.structure import MAX_KEYS, Vocabulary
from lookm.types import Structure
from tests.lookm.ascii_tokenizer import END, AsciiProcessor
from tests.lookm.tiny import VOCABULARY

ANY = Structure("json_object")


@pytest.fixture(scope="module")
def vocabulary() -> Any:
    return Vocabulary.of(AsciiProcessor(), [END])


REFUSED = [
    ("json_schema", "{", "cannot be read"),
    ("json_schema", "[]", "must be a JSON object"),
    ("json_schema", '{"a":' * 5000 + "1" + "}" * 5000, "recursion"),
    ("json_schema", '{"type": "objec"}', "Invalid type"),
    ("json_schema", '{"not": {}}', "not"),
    ("json_schema", '{"x-guidance": {"lenient": true}, "not": {}}', "not"),
    ("json_schema", '{"enum": []}', "Unsatisfiable"),
    ("json_schema", '{"$ref": "file:///etc/hostname"}', "does not fetch"),
    ("json_schema", '{"type": "integer", "maximum": 1e999}', "json_schema"),
    ("json_schema", json.dumps({"properties": {str(i): {} for i in range(MAX_KEYS + 1)}}), "keys"),
    (
        "json_schema",
        json.dumps({"type": "object", "properties": {str(i): {} for i in range(MAX_KEYS)}}),
        "items",
    ),
    ("json_schema", '"' + "x" * 70_000 + '"', "characters"),
    ("regex", "(a", "unclosed"),
    ("regex", "(?=a)b", "look-around"),
]


@pytest.mark.parametrize(("kind", "source", "reason"), REFUSED)
def test_what_cannot_be_followed_is_refused_with_the_reason(
    vocabulary: Any, kind: Any, source: Any, reason: Any
) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        vocabulary.grammar(Structure(kind, source))
    assert refused.value.param == "response_format"
    assert len(str(refused.value)) < 300


PATHOLOGICAL = [
    Structure("regex", "(((((a{1,99}|b*){1,99}c*){1,99}){1,99}d?){1,99}b?){3,99}"),
    Structure("regex", "|".join(f".*{c}.{{{50 + i}}}" for i, c in enumerate("abcdefghij"))),
    Structure(
        "json_schema",
        json.dumps(
            {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {}}} for j in "abc"]} for i in "xyz"]}
        ),
    ),
    Structure("json_schema", json.dumps({"enum": [f"v{i * 7919}" for i in range(4000)]})),
    Structure("json_schema", '{"type": "string", "pattern": "^(a{1,1000}){1,1000}$"}'),
]


@pytest.mark.parametrize("structure", PATHOLOGICAL)
def test_a_pathological_structure_costs_little_time(vocabulary: Any, structure: Any) -> None:
    started_s = time.process_time()
    try:
        grammar = vocabulary.grammar(structure)
        for _ in range(20):
            logits = torch.rand(VOCABULARY)
            grammar.mask(logits)
            grammar.advance(int(logits.argmax()))
    except RequestError:
        pass
    assert time.process_time() - started_s < 2


def test_a_tokenizer_without_grammars_says_so_and_still_has_bytes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, "<unk>")).to_str()
    for tokenizer_json in (None, words):
        vocabulary = Vocabulary(tokenizer_json, lambda ids: f" w{ids[0]}", [END])
        assert vocabulary.bytes_of(5) == b" w5"
        with pytest.raises(RequestError, match="tokenizer"):
            vocabulary.grammar(ANY)
    assert "no structured answers" in caplog.text
