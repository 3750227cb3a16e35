"""Token ids as a person reads them: what each adds to the text, and which add nothing."""

from collections.abc import Callable, Sequence
from typing import Any

# Of Mistral's and Llama's tokenizers: part of an answer that calls a tool or thinks, though
# they are special.
ANSWER_TOKENS = frozenset({"[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "[THINK]", "[/THINK]"})

MAX_CHARACTER_TOKENS = 4  # a character has as many bytes at most
INCOMPLETE = "\ufffd"


def shown(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """The text of each id. A character of several tokens is its last one's.

    Each is decoded after the one before it: a tokenizer takes the space before the first word of a
    text for its own.
    """
    texts: list[str] = []
    before: list[int] = []
    length = 0  # of the text of `before`
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        text = decode([*before, *pending])[length:]
        if text.endswith(INCOMPLETE) and len(pending) < MAX_CHARACTER_TOKENS:
            texts.append("")
            continue
        texts.append(text)
        before, pending = [token], []
        length = len(decode(before))
    return texts


def hidden_ids(tokenizer: Any) -> frozenset[int]:
    """Control tokens that are never shown in an answer."""
    added = tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special}
    seen = {i for i in special if added[i].content in ANSWER_TOKENS}
    return frozenset(special | set(tokenizer.all_special_ids)) - seen
