"""A `Structure` as a grammar in llguidance's own form.

Between JSON's tokens at most one space, or a line break and an indent, is allowed: a model under a
mask may otherwise write white space until it runs out of tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lookm.errors import RequestError
from lookm.grammar.schema import checked
from lookm.types import Structure

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from llguidance._lib import JsonCompileOptions

MAX_SOURCE_CHARACTERS = 2**16

ANY_OBJECT = '{"type": "object"}'
BETWEEN_JSON_TOKENS = r"( |\n[ \t]{0,32})"
# Not lenient: a keyword that llguidance does not know is refused, not ignored.
JSON_OPTIONS: "JsonCompileOptions" = {
    "whitespace_pattern": BETWEEN_JSON_TOKENS,
    "lenient": False,
}

Strings = Sequence[str]


@dataclass(frozen=True, slots=True)
class Pieces:
    """JSON between markers: `opened piece (between piece)* closed`, with at most `most` pieces.

    A piece is one of `alternatives`, each `(begin, schema, end)`. Markers are lists of strings; one
    that is the name of a control token of the model stands for that token. If `optional`, free text
    may stand before the block or in its place; the first string of `opened` is not in that text.
    Where that one is empty, text only stands in the block's place, and does not begin with `{`.
    """

    alternatives: Sequence[tuple[Strings, dict[str, Any], Strings]]
    opened: Strings
    between: Strings = ()
    closed: Strings = ()
    most: int = 1
    optional: bool = False


def check_size(structure: Structure) -> None:
    """Raises `RequestError` for what nobody should have to read."""
    if len(structure.source) > MAX_SOURCE_CHARACTERS:
        raise RequestError(
            f"{structure.kind} has {len(structure.source)} characters; at most "
            f"{MAX_SOURCE_CHARACTERS} are allowed",
            param=structure.param,
        )


def pieces_of(structure: Structure) -> Pieces:
    """The pieces that a structure of this kind holds. Raises `ValueError`, `TypeError`."""
    return Pieces(**json.loads(structure.source))


def grammar_source(structure: Structure, tokens: "LLTokenizer") -> str:
    """The grammar. Raises `RequestError`."""
    from llguidance import LLMatcher

    if structure.kind == "regex":
        return LLMatcher.grammar_from_regex(structure.source)
    try:
        if structure.kind == "json_pieces":
            pieces = pieces_of(structure)
            return LLMatcher.grammar_from_lark(_lark(pieces, tokens, structure.param))
        source = structure.source if structure.kind == "json_schema" else ANY_OBJECT
        return LLMatcher.grammar_from_json_schema(
            json.dumps(checked(json.loads(source), structure.param)), overrides=JSON_OPTIONS
        )
    except (ValueError, RecursionError) as error:
        message = f"{structure.kind} cannot be read: {error}"
        raise RequestError(message, param=structure.param) from error


def _lark(pieces: Pieces, tokens: "LLTokenizer", param: str) -> str:
    """`pieces` as a grammar; see its docstring for the form."""
    lines = []
    for number, (begin, schema, end) in enumerate(pieces.alternatives):
        fixed = {**checked(schema, param), "x-guidance": JSON_OPTIONS}
        before, after = _literal(begin, tokens), _literal(end, tokens)
        lines.append(f"piece_{number}: {before} json_{number} {after}")
        lines.append(f"json_{number}: %json {json.dumps(fixed)}")
    any_piece = " | ".join(f"piece_{number}" for number in range(len(pieces.alternatives)))
    again = f"({_literal(pieces.between, tokens)} piece)"
    more = f"{again}{{0,{pieces.most - 1}}}" if pieces.most > 1 else ""
    marker, *opened = pieces.opened
    rest = f"{_literal(opened, tokens)} piece {more} {_literal(pieces.closed, tokens)}"
    lines += [f"piece: {any_piece}", f"rest: {rest}"]
    mark = _literal([marker], tokens)
    if not pieces.optional:
        return "\n".join([f"start: {mark} rest", *lines])
    if not marker:
        return "\n".join(["start: TEXT | rest", *lines, r"TEXT: /(\s*[^{\s](.|\n)*)?/"])
    found = "".join(f"\\x{{{ord(character):x}}}" for character in marker)
    lines += [
        "start: TEXT | head rest",
        # A control token ends any text; a spelled-out marker must be looked for in it.
        f"head: TEXT {mark}" if mark.startswith("<[") else f"head[lazy]: ANY {mark}",
        r"ANY: /(.|\n)*/",
        f"TEXT: ANY & ~/(?s:.*){found}(?s:.*)/",
    ]
    return "\n".join(lines)


def _literal(strings: Sequence[str], tokens: "LLTokenizer") -> str:
    """Strings one after the other; one that is the name of a control token stands for it."""
    shown = []
    for text in filter(None, strings):
        ids = tokens.tokenize_str(text, parse_special=True)
        special = [i for i in ids if tokens.is_special_token(i)]
        named = len(special) == 1 and tokens.decode_bytes(special) == text.encode()
        shown.append(f"<[{special[0]}]>" if named else json.dumps(text))
    return " ".join(shown)
