"""JSON between markers, which tool calls are: what a grammar lets a model say, token by token."""

import functools
import json
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from lookm.errors import RequestError
from lookm.grammar.client import Grammars
from lookm.types import Structure
from tests.lookm.grammars import opened
from tests.lookm.models.toy_processors import tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/whole"}},
    "required": ["x"],
    "additionalProperties": False,
    "$defs": {"whole": {"type": "integer"}},
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
FORM = {
    "opened": ["<call>", "\n"],
    "between": ["\n", "</call>", "\n", "<call>", "\n"],
    "closed": ["\n", "</call>"],
    "alternatives": [(["f="], SCHEMA, [";"]), (["g="], NOTHING, [";"])],
}
F, G = '<call>\nf={"x": 1};\n</call>', "<call>\ng={};\n</call>"


@pytest.fixture(params=["spelled", "control"], scope="module")
def words(request: pytest.FixtureRequest) -> Any:
    """A tokenizer whose markers are plain text, and one where they are tokens of their own."""
    made = tokenizer(["<image>"])
    if request.param == "control":
        made.add_tokens([AddedToken(each, special=False) for each in ("<call>", "</call>")])
    return made


@functools.cache
def grammars_of(words: Any) -> Grammars:
    """One process for all cases of a tokenizer."""
    return Grammars(words.backend_tokenizer.to_str, [2])


def follows(words: Any, text: str, **form: Any) -> bool:
    """Whether the text may be said, and may end there."""
    structure = Structure("json_pieces", json.dumps(FORM | form), "tools")
    grammar = opened(grammars_of(words), structure)
    for token in [*words.encode(text, add_special_tokens=False), 2]:
        logits_V = torch.zeros(len(words))
        grammar.mask(logits_V)
        assert grammar.failure is None
        if logits_V[token] < 0:
            return False
        grammar.advance(token)
    return True


@pytest.mark.parametrize(
    ("text", "form", "allowed"),
    [
        (F, {}, True),
        (G, {}, True),
        (f"{F}\n{G}", {}, False),
        (f"{F}\n{G}", {"most": 2}, True),
        (f"{F}\n{G}\n{F}", {"most": 2}, False),
        ("hello", {}, False),
        ("hello", {"optional": True}, True),
        (f"see < {F}", {"optional": True}, True),
        (f"see < {F}\n{G}", {"optional": True, "most": 9}, True),
        ("see <call> me", {"optional": True}, False),
        (F.replace("1", '"1"'), {}, False),
        (F.replace("1", '"1"'), {"optional": True}, False),
        (F.replace("f=", "h="), {"optional": True}, False),
    ],
)
def test_only_whole_pieces_between_their_markers(
    words: Any, text: str, form: dict[str, Any], allowed: bool
) -> None:
    assert follows(words, text, **form) == allowed


BARE = {"opened": [""], "between": [], "closed": []}


@pytest.mark.parametrize(
    ("text", "optional", "allowed"),
    [
        ('f={"x": 1};', False, True),
        ("hello", False, False),
        ("hello {", True, True),
        ("", True, True),
        (" \n{", True, False),
        (" \nhello", True, True),
    ],
)
def test_without_a_marker_a_piece_is_all_there_is(
    words: Any, text: str, optional: bool, allowed: bool
) -> None:
    assert follows(words, text, **BARE, optional=optional) == allowed


@pytest.mark.parametrize(
    ("text", "allowed"), [('{"x": 1}', True), ('{"x": "1"}', False), ("{", False)]
)
def test_an_answer_that_begins_as_a_piece_without_a_marker_is_one(
    words: Any, text: str, allowed: bool
) -> None:
    pieces = [([], SCHEMA, [])]
    assert follows(words, text, **BARE, optional=True, alternatives=pieces) == allowed


@pytest.mark.parametrize(
    "schema",
    [{"type": "object", "propertyNames": {"pattern": "a"}}, {"$ref": "#/nowhere"}, [], {"type": 3}],
)
def test_a_schema_that_cannot_be_kept_to_is_refused_naming_the_field(
    words: Any, schema: Any
) -> None:
    with pytest.raises(RequestError) as refused:
        follows(words, F, alternatives=[(["f="], schema, [";"])])
    assert refused.value.param == "tools"
