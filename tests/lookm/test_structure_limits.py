"""Structures that cannot be followed are refused with the reason, and none costs much time."""

import json
import time
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

from lookm import RequestError
from lookm.grammar.client import Grammars
from lookm.grammar.schema import MAX_KEYS
from lookm.types import Structure
from tests.lookm.ascii_tokenizer import END, AsciiProcessor
from tests.lookm.grammars import opened
from tests.lookm.tiny import VOCABULARY

ANY = Structure("json_object")


@pytest.fixture(scope="module")
def grammars() -> Any:
    return Grammars(lambda: AsciiProcessor().tokenizer_json, [END])


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
    grammars: Any, kind: Any, source: Any, reason: Any
) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        opened(grammars, Structure(kind, source))
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
def test_a_pathological_structure_costs_little_time(grammars: Any, structure: Any) -> None:
    started_s = time.process_time()
    try:
        grammar = opened(grammars, structure)
        for _ in range(20):
            logits = torch.rand(VOCABULARY)
            grammar.mask(logits)
            grammar.advance(int(logits.argmax()))
            if grammar.complete:
                break
    except RequestError:
        pass
    assert time.process_time() - started_s < 10


def test_a_tokenizer_without_grammars_says_so() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, "<unk>")).to_str()
    for tokenizer_json in (None, words):
        with pytest.raises(RequestError, match="tokenizer"):
            opened(Grammars(lambda described=tokenizer_json: described, [END]), ANY)
