"""Structured answers (JSON, JSON between markers, regexes) as masks over each step's logits.

The only code that knows llguidance, which it imports when it is first needed. A grammar is compiled
when its request is added, within limits: what cannot be served is refused with a reason, and a
hostile schema cannot hold up the engine. Its state belongs to one request and moves with each
chosen token, so a preemption, which keeps the tokens, keeps it too. Knows nothing about sampling.

Between JSON's tokens at most one space, or a line break and an indent, is allowed: a model under a
mask may otherwise write white space until it runs out of tokens.
"""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from lookm.errors import RequestError
from lookm.types import Structure

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from lookm.models.processor import Processor

logger = logging.getLogger(__name__)

Decode = Callable[[Sequence[int]], str]

MAX_SOURCE_CHARACTERS = 2**16
MAX_KEYS = 512  # of one object in a schema: the compiler's time grows with their square

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


class Vocabulary:
    """A model's tokens as bytes, and grammars over them. One per engine: a large vocabulary takes
    a second to build.
    """

    def __init__(self, tokenizer_json: str | None, decode: Decode, end_ids: Iterable[int]) -> None:
        self._decode = decode
        self._tokens = None if tokenizer_json is None else _read(tokenizer_json, end_ids)

    @classmethod
    def of(cls, processor: "Processor", end_ids: Iterable[int]) -> "Vocabulary":
        """Of the processor's tokenizer; without grammars where that is not a fast one."""
        return cls(processor.tokenizer_json, processor.decode, end_ids)

    def bytes_of(self, token: int) -> bytes:
        """What a token adds to the text; control tokens by their name, unused ids are empty."""
        if self._tokens is None:
            return self._decode([token]).encode()
        return self._tokens.decode_bytes([token]) if token < self._tokens.vocab_size else b""

    def grammar(self, structure: Structure) -> "TokenGrammar":
        """Compile. Raises `RequestError` with the compiler's reason."""
        from llguidance import LLMatcher

        if self._tokens is None:
            message = "this model's tokenizer cannot follow a structure"
            raise RequestError(message, param=structure.param)
        source = _source(structure, self._tokens)
        matcher = LLMatcher(self._tokens, source, log_level=0, limits=_limits())
        reason = _trouble(matcher)
        if reason is not None:
            message = f"{structure.kind} cannot be followed: {reason}"
            raise RequestError(message, param=structure.param)
        return TokenGrammar(matcher)


class TokenGrammar:
    """One answer's place in its grammar (`lookm.sampling.Grammar`)."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher
        self.failure: str | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing but an end token could follow."""
        return self.failure is None and self._matcher.is_stopped()

    def mask(self, logits_V: torch.Tensor) -> None:
        """Set to -inf, in place, what must not come next. End tokens may come where it accepts."""
        if self.failure is not None:
            return
        allowed = _allowed(self._matcher)[: logits_V.numel()]
        if self._matcher.is_error() or not allowed.any():
            self._fail()
            return
        banned_V = torch.ones(logits_V.numel(), dtype=torch.bool)
        banned_V[: allowed.size] = torch.from_numpy(~allowed)
        logits_V.masked_fill_(banned_V.to(logits_V.device), -torch.inf)

    def advance(self, token: int) -> None:
        """Note the token that came."""
        if self.failure is None and not self._matcher.consume_token(token):
            self._fail()

    def _fail(self) -> None:
        self.failure = f"the answer's structure cannot be followed: {_reason(self._matcher)}"


def _read(tokenizer_json: str, end_ids: Iterable[int]) -> "LLTokenizer | None":
    """The tokenizer as llguidance has it; None where it cannot read that kind."""
    from llguidance import LLTokenizer

    try:
        return LLTokenizer(tokenizer_json, eos_token=sorted(end_ids) or None)
    except ValueError as error:
        logger.warning("no structured answers with this tokenizer: %s", error)
        return None


def _allowed(matcher: "LLMatcher") -> npt.NDArray[np.bool_]:
    """Which tokens may come next, one bool a token of the tokenizer, rounded up to 32."""
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    return np.unpackbits(bits, bitorder="little").astype(bool)


def _trouble(matcher: "LLMatcher") -> str | None:
    """Why a grammar cannot be used, or None. Most limits it may exceed show at its first tokens."""
    if matcher.is_error():
        return _reason(matcher)
    allowed = _allowed(matcher)
    ahead = matcher.deep_copy()
    if not matcher.is_error() and allowed.any():
        ahead.consume_token(int(allowed.argmax()))
        return _reason(ahead) if ahead.is_error() else None
    return _reason(matcher)


def _source(structure: Structure, tokens: "LLTokenizer") -> str:
    """The grammar in llguidance's own form."""
    from llguidance import LLMatcher

    if len(structure.source) > MAX_SOURCE_CHARACTERS:
        raise RequestError(
            f"{structure.kind} has {len(structure.source)} characters; at most "
            f"{MAX_SOURCE_CHARACTERS} are allowed",
            param=structure.param,
        )
    if structure.kind == "regex":
        return LLMatcher.grammar_from_regex(structure.source)
    try:
        if structure.kind == "json_pieces":
            pieces = Pieces(**json.loads(structure.source))
            return LLMatcher.grammar_from_lark(_lark(pieces, tokens, structure.param))
        source = structure.source if structure.kind == "json_schema" else ANY_OBJECT
        return LLMatcher.grammar_from_json_schema(
            json.dumps(_checked(json.loads(source), structure.param)), overrides=JSON_OPTIONS
        )
    except (ValueError, RecursionError) as error:
        message = f"{structure.kind} cannot be read: {error}"
        raise RequestError(message, param=structure.param) from error


def _lark(pieces: Pieces, tokens: "LLTokenizer", param: str) -> str:
    """`pieces` as a grammar; see its docstring for the form."""
    lines = []
    for number, (begin, schema, end) in enumerate(pieces.alternatives):
        fixed = {**_checked(schema, param), "x-guidance": JSON_OPTIONS}
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


def _checked(schema: Any, param: str) -> dict[str, Any]:
    if not isinstance(schema, dict):
        raise RequestError("a JSON schema must be a JSON object", param=param)
    if _most_keys(schema) > MAX_KEYS:
        message = f"an object of the JSON schema has more than {MAX_KEYS} keys"
        raise RequestError(message, param=param)
    return schema


def _most_keys(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return 0
    return max(len(value) if isinstance(value, dict) else 0, *map(_most_keys, inside), 0)


def _limits() -> "LLParserLimits":
    """In all at most about 0.3 s for the compiler, and 15 ms for each mask, on one core."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=30_000,
        verbose_errors=False,
    )


def _reason(matcher: "LLMatcher") -> str:
    """llguidance's error in one line: the rest shows its inner state."""
    lines = [line.strip() for line in matcher.get_error().splitlines()]
    shown = " ".join(line for line in lines if line and not line.startswith("<"))
    return shown[:200] or "nothing can follow"
