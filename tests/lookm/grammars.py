"""Grammars as the engine has them, waited for: tests need not know that they are elsewhere."""

import time
from typing import Any

from lookm.grammar.client import Grammars
from lookm.grammar.token_grammar import TokenGrammar
from lookm.types import Structure


class SettledGrammar:
    """A `TokenGrammar` that is always ready."""

    def __init__(self, grammars: Grammars, grammar: TokenGrammar) -> None:
        self._grammars = grammars
        self._grammar = grammar

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grammar, name)

    def advance(self, token: int) -> None:
        self._grammar.advance(token)
        settle(self._grammars, self._grammar)


def opened(grammars: Grammars, structure: Structure) -> SettledGrammar:
    """A grammar that is compiled. Raises its refusal."""
    grammar = grammars.open(structure)
    settle(grammars, grammar)
    if grammar.refusal is not None:
        raise grammar.refusal
    return SettledGrammar(grammars, grammar)


def settle(grammars: Grammars, grammar: TokenGrammar) -> None:
    until_s = time.monotonic() + 30
    while not (grammar.ready or grammar.complete or grammar.refusal):
        assert time.monotonic() < until_s
        grammars.wait(1)
        grammars.poll()
