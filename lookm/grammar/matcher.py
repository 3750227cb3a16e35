"""A model's tokens as bytes, grammars over them, and one answer's place in its grammar.

Compiling and masks are bounded by llguidance's own estimates here, so that it refuses with a reason
what it can see will not do. The limits that hold are the system's (`child`). No torch.
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lookm.errors import RequestError
from lookm.grammar.digits import DigitClasses, DigitRun
from lookm.grammar.source import grammar_source
from lookm.types import Structure

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

logger = logging.getLogger(__name__)

Bools = npt.NDArray[np.bool_]


class Vocabulary:
    """A tokenizer as llguidance has it. A large one takes a second to build."""

    def __init__(self, tokenizer_json: str | None, end_ids: Iterable[int]) -> None:
        self.tokens = None if tokenizer_json is None else _read(tokenizer_json, end_ids)
        self._digits: DigitClasses | None = None

    def bytes_of(self, token: int) -> bytes:
        """What a token adds to the text; control tokens by their name, unused ids are empty."""
        assert self.tokens is not None
        return self.tokens.decode_bytes([token]) if token < self.tokens.vocab_size else b""

    @property
    def digits(self) -> DigitClasses:
        """Which tokens begin with a digit."""
        if self._digits is None:
            assert self.tokens is not None
            self._digits = DigitClasses.of(map(self.bytes_of, range(self.tokens.vocab_size)))
        return self._digits

    def compile(self, structure: Structure) -> "Compiled":
        """Raises `RequestError` with the compiler's reason."""
        from llguidance import LLMatcher

        if self.tokens is None:
            message = "this model's tokenizer cannot follow a structure"
            raise RequestError(message, param=structure.param)
        source = grammar_source(structure, self.tokens)
        matcher = LLMatcher(self.tokens, source, log_level=0, limits=_limits())
        reason = _trouble(matcher)
        if reason is not None:
            message = f"{structure.kind} cannot be followed: {reason}"
            raise RequestError(message, param=structure.param)
        return Compiled(self, structure, matcher)


class Compiled:
    """A grammar, before any token."""

    def __init__(self, vocabulary: Vocabulary, structure: Structure, matcher: "LLMatcher") -> None:
        self._vocabulary = vocabulary
        self._structure = structure
        self._matcher = matcher

    def answer(self) -> "Answer":
        """Another answer that is to follow it."""
        run = DigitRun.of(self._structure)
        return Answer(self._vocabulary, self._matcher.deep_copy(), run)


class Answer:
    """One answer's place in its grammar. `failure` says why it cannot go on."""

    def __init__(self, vocabulary: Vocabulary, matcher: "LLMatcher", run: DigitRun | None) -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._run = run
        self.failure: str | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing but an end token could follow."""
        return self.failure is None and self._matcher.is_stopped()

    def advance(self, token: int) -> None:
        """Note the token that came."""
        if self.failure is not None:
            return
        if not self._matcher.consume_token(token):
            self._fail()
        elif self._run is not None:
            self._run.push(self._vocabulary.bytes_of(token))

    def allowed(self) -> bytes:
        """Which tokens may come next, one bit a token, rounded up to 32; all, after a failure."""
        if self.failure is not None:
            return b""
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error() or not any(bits):
            self._fail()
            return b""
        if self._run is not None and self._run.is_long:
            allowed = unpacked(bits)
            return np.packbits(
                self._vocabulary.digits.bounded(allowed), bitorder="little"
            ).tobytes()
        return bits

    def _fail(self) -> None:
        self.failure = f"the answer's structure cannot be followed: {_reason(self._matcher)}"


def unpacked(bits: bytes) -> Bools:
    """A mask as one bool a token."""
    return np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little").astype(bool)


def _read(tokenizer_json: str, end_ids: Iterable[int]) -> "LLTokenizer | None":
    """The tokenizer as llguidance has it; None where it cannot read that kind."""
    from llguidance import LLTokenizer

    try:
        return LLTokenizer(tokenizer_json, eos_token=sorted(end_ids) or None)
    except ValueError as error:
        logger.warning("no structured answers with this tokenizer: %s", error)
        return None


def _trouble(matcher: "LLMatcher") -> str | None:
    """Why a grammar cannot be used, or None. Most limits it may exceed show at its first tokens."""
    if matcher.is_error():
        return _reason(matcher)
    ahead = matcher.deep_copy()
    allowed = unpacked(ahead.compute_bitmask())
    if not ahead.is_error() and allowed.any():
        ahead.consume_token(int(allowed.argmax()))
        return _reason(ahead) if ahead.is_error() else None
    return _reason(ahead)


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
