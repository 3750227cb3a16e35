"""From token ids to text that may be shown, one token at a time, with stop strings.

Two things hold text back: a token that ends inside a UTF-8 character (byte-level tokenizers decode
it to U+FFFD), and an ending that may be the beginning of a stop string. Both are released by the
tokens that follow, or at the end.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_INCOMPLETE = "\ufffd"


class Detokenizer:
    """The text of one answer. `stopped_by` is the stop string that ended it, once one did.

    A stop string ends nothing before `min_tokens` tokens: it counts only if it is completed by a
    later one.

    Decoding starts a few tokens back rather than at the newest one, because a token's text depends
    on its neighbours (a leading space, a character split over tokens):

        ids     [ ... shown ... | context | new ]
                                 ^ _start  ^ _done
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...] = (), min_tokens: int = 0) -> None:
        self._decode = decode
        self._min_tokens = min_tokens
        self._stop = tuple(s for s in stop if s)
        self._ids: list[int] = []
        self._start = 0
        self._done = 0
        self._held = ""
        self.stopped_by: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the answer."""
        return self.stopped_by is not None

    def push(self, token_id: int) -> str:
        """Add one token; return the text that may be shown now."""
        self._ids.append(token_id)
        text = self._new_text()
        if text.endswith(_INCOMPLETE):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return self._release(text)

    def finish(self) -> str:
        """Return what is still held back, except where a stop string ended the answer."""
        if self.stopped:
            return ""
        text = self._release(self._new_text())
        self._start = self._done = len(self._ids)
        held, self._held = self._held, ""
        return text + held

    def _new_text(self) -> str:
        context = self._decode(self._ids[self._start : self._done])
        return self._decode(self._ids[self._start :])[len(context) :]

    def _release(self, text: str) -> str:
        """Pass `text` on up to a complete stop string, keeping back what may become one."""
        num_held, text = len(self._held), self._held + text
        if len(self._ids) > self._min_tokens:
            # A stop string that lies in what was held, whole, was completed before `min_tokens`.
            starts = [(text.find(s, max(0, num_held - len(s) + 1)), len(s), s) for s in self._stop]
            found = [each for each in starts if each[0] >= 0]
            if found:
                at, _, self.stopped_by = min(found)
                self._held = ""
                return text[:at]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest ending of `text` that is a proper beginning of `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
