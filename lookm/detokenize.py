"""From token ids to text that may be shown, one token at a time, with stop strings.

Two things hold text back: a token that ends inside a UTF-8 character (byte-level tokenizers decode
it to U+FFFD), and an ending that may be the beginning of a stop string. Both are released by the
tokens that follow, or at the end.
"""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_INCOMPLETE = "\ufffd"


class Detokenizer:
    """The text of one answer. `stopped` is True once a stop string was completed.

    Decoding starts a few tokens back rather than at the newest one, because a token's text depends
    on its neighbours (a leading space, a character split over tokens):

        ids     [ ... shown ... | context | new ]
                                 ^ _start  ^ _done
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = tuple(s for s in stop if s)
        self._ids: list[int] = []
        self._start = 0
        self._done = 0
        self._held = ""
        self.stopped = False

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
        text = self._held + text
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest ending of `text` that is a proper beginning of `stop`."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
