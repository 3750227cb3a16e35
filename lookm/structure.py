"""Structured answers: JSON objects, JSON schemas and regexes, as masks over each step's logits.

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
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from lookm.errors import RequestError
from lookm.types import Structure

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    from lookm.models.processor import Processor

logger = logging.getLogger(__name__)

Decode = Callable[[Sequence[int]], str]

MAX_SOURCE_CHARACTERS = 2**16
MAX_KEYS = 512  # of one object in a schema: the compiler's time grows with their square
PARAM = "response_format"

ANY_OBJECT = '{"type": "object"}'
BETWEEN_JSON_TOKENS = r"( |\n[ \t]{0,32})"


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
            raise RequestError("this model's tokenizer cannot follow a structure", param=PARAM)
        matcher = LLMatcher(self._tokens, _source(structure), log_level=0, limits=_limits())
        reason = _trouble(matcher)
        if reason is not None:
            raise RequestError(f"{structure.kind} cannot be followed: {reason}", param=PARAM)
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


def _source(structure: Structure) -> str:
    """The grammar in llguidance's own form."""
    from llguidance import LLMatcher

    if len(structure.source) > MAX_SOURCE_CHARACTERS:
        raise RequestError(
            f"{structure.kind} has {len(structure.source)} characters; at most "
            f"{MAX_SOURCE_CHARACTERS} are allowed",
            param=PARAM,
        )
    if structure.kind == "regex":
        return LLMatcher.grammar_from_regex(structure.source)
    try:
        schema = _schema(structure.source if structure.kind == "json_schema" else ANY_OBJECT)
        # Not lenient: a keyword that llguidance does not know is refused, not ignored.
        return LLMatcher.grammar_from_json_schema(
            json.dumps(schema),
            overrides={"whitespace_pattern": BETWEEN_JSON_TOKENS, "lenient": False},
        )
    except (ValueError, RecursionError) as error:
        raise RequestError(f"json_schema cannot be read: {error}", param=PARAM) from error


def _schema(source: str) -> object:
    schema = json.loads(source)
    if not isinstance(schema, dict | bool):
        raise RequestError("json_schema must be a JSON object", param=PARAM)
    if _most_keys(schema) > MAX_KEYS:
        raise RequestError(
            f"an object of the json_schema has more than {MAX_KEYS} keys", param=PARAM
        )
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
