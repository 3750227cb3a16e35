"""Cuts an answer at its first stop string, which may come in pieces.

An ending that may be the beginning of a stop string is held back until what follows decides. Knows
text and how many tokens it took; nothing about tokens themselves (`detokenize` makes the text,
`postprocess` ends the answer).
"""


class StopStrings:
    """The stop strings of one answer. `stopped_by` is the one that ended it, once one did.

    None ends anything before `min_tokens` tokens: it counts only if a later token completes it.
    """

    def __init__(self, stop: tuple[str, ...] = (), min_tokens: int = 0) -> None:
        self._stop = tuple(s for s in stop if s)
        self._min_tokens = min_tokens
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, text: str, num_tokens: int) -> str:
        """Pass text on up to a complete stop string, keeping back what may become one.

        `num_tokens` is how many tokens the answer has, those of this text included.
        """
        num_held, text = len(self._held), self._held + text
        if num_tokens > self._min_tokens:
            # A stop string that lies in what was held, whole, was completed before `min_tokens`.
            starts = [(text.find(s, max(0, num_held - len(s) + 1)), len(s), s) for s in self._stop]
            found = [each for each in starts if each[0] >= 0]
            if found:
                at, _, self.stopped_by = min(found)
                self._held = ""
                return text[:at]
        num_held = max((overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def finish(self) -> str:
        """What is still held back: the answer is over, so it became no stop string."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, marker: str) -> int:
    """Length of the longest ending of `text` that is a proper beginning of `marker`.

    >>> overlap("a <tool", "<tool_call>")
    5
    """
    sizes = range(min(len(marker) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(marker[:size])), 0)
