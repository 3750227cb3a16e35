"""How much text one token can stand for, and whether a text is too long to be worth tokenizing.

A tokenizer that keeps every character of a text makes at least `characters / longest token` tokens
of it, so a text of 100 MB need not be tokenized to be refused. Tokenizers may also drop characters
(strip, replace, one token for any unknown word): what is not known to keep them all gets `UNKNOWN`,
which is generous. Below that bound, a long text is counted piece by piece, and the counting ends
where it is clear that the text does not fit. Knows fast tokenizers' parts; nothing about chats.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import models, pre_tokenizers

from lookm.errors import PromptTooLongError

UNKNOWN = 1024  # characters a token, where a tokenizer may drop some: no language comes near it
MAX_COMPOSED = 4  # characters that NFC and NFKC make one of, at most (U+1F82 is three marks on one)
PIECE_CHARACTERS = 2**14
# Tokenized as it is: a context of English or Chinese, or of image tokens, is about as long.
SHORT_CHARACTERS = 4  # for each token of the context
# A piece begins and ends where a token might have gone on: a few tokens of thousands.
CLEARLY_OVER = 2

KEEPING_NORMALIZERS = frozenset({"NFD", "NFKD", "Lowercase", "Prepend", "ByteLevel"})
COMPOSING_NORMALIZERS = frozenset({"NFC", "NFKC"})
KEEPING_PRE_TOKENIZERS = frozenset(
    {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "Split", "Punctuation"}
)
BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))


def max_token_characters(tokenizer: Any) -> int:
    """How many characters of a text one token stands for at most; `UNKNOWN` where some may vanish.

    `tokenizer` is a fast one's backend (`tokenizers.Tokenizer`), or None for a slow one.
    """
    if tokenizer is None:
        return UNKNOWN
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    normalizer, pre_tokenizer = _state(tokenizer.normalizer), _state(tokenizer.pre_tokenizer)
    added = tokenizer.get_added_tokens_decoder().values()
    swallows_space = any(token.lstrip or token.rstrip for token in added)
    shrinks = _shrinks(normalizer)
    if swallows_space or shrinks is None or not _keeps(pre_tokenizer):
        return UNKNOWN
    parts = (*_parts(normalizer), *_parts(pre_tokenizer))
    byte_level = "ByteLevel" in {part["type"] for part in parts}
    if not _knows_all(tokenizer.model, vocabulary, byte_level=byte_level):
        return UNKNOWN
    return shrinks * max(map(len, vocabulary))


def check_length(text: str, count: Callable[[str], int], max_tokens: int, *, param: str) -> None:
    """Raise `PromptTooLongError` for a text that is clearly longer than `max_tokens`.

    `count` tells how many tokens a text has; it is asked about pieces, one after the other, until
    there are twice as many tokens as fit. A text that is not refused may still be too long, but
    tokenizing it costs no more than a few contexts. Nothing that fits is refused.
    """
    if len(text) <= SHORT_CHARACTERS * max_tokens:
        return
    num_tokens = 0
    for start in range(0, len(text), PIECE_CHARACTERS):
        num_tokens += count(text[start : start + PIECE_CHARACTERS])
        if num_tokens > CLEARLY_OVER * max_tokens:
            raise PromptTooLongError(
                f"The prompt has {len(text)} characters, of which the first "
                f"{start + PIECE_CHARACTERS} have {num_tokens} tokens, and the model's context is "
                f"{max_tokens}: shorten it or send fewer images.",
                param=param,
            )


def _state(part: Any) -> Mapping[str, Any] | None:
    """A part of a tokenizer as `tokenizer.json` describes it."""
    if part is None:
        return None
    state: Mapping[str, Any] = json.loads(part.__getstate__())
    return state


def _parts(state: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A part, or what a sequence of them consists of."""
    if state is None:
        return []
    inside = [*state.get("normalizers", ()), *state.get("pretokenizers", ())]
    return [each for part in inside for each in _parts(part)] if inside else [state]


def _shrinks(normalizer: Mapping[str, Any] | None) -> int | None:
    """How many characters it makes one of at most; None where it may drop any number."""
    factor = 1
    for part in _parts(normalizer):
        if part["type"] in COMPOSING_NORMALIZERS:
            factor *= MAX_COMPOSED
        elif part["type"] == "Replace":
            pattern, content = part["pattern"].get("String"), part["content"]
            if not pattern or not content:
                return None
            factor *= math.ceil(len(pattern) / len(content))
        elif part["type"] not in KEEPING_NORMALIZERS:
            return None
    return factor


def _keeps(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether every character of a text is in one of its splits."""
    return all(
        part["type"] in KEEPING_PRE_TOKENIZERS and part.get("behavior") != "Removed"
        for part in _parts(pre_tokenizer)
    )


def _knows_all(model: Any, vocabulary: Mapping[str, int], *, byte_level: bool) -> bool:
    """Whether every character becomes a token of its own at the latest, and none is dropped."""
    if not isinstance(model, models.BPE):
        return False  # others have one token for any unknown word
    if byte_level:
        return vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet())
    if model.byte_fallback:
        return vocabulary.keys() >= BYTE_TOKENS
    return model.unk_token is not None and not model.fuse_unk
