"""Token ids as a person reads them: what each adds to the text. Knows a way to decode ids."""

from collections.abc import Callable, Sequence

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
