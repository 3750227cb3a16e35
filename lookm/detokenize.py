"""From token ids to text that may be shown, one token at a time.

Two things hold text back: a token that ends inside a UTF-8 character (byte-level tokenizers decode
it to U+FFFD), and an ending that may be the beginning of a stop string (`stop_strings`, which cuts
the text). Both are released by the tokens that follow, or at the end.
"""

from collections.abc import Callable, Sequence

from lookm.stop_strings import StopStrings

Decode = Callable[[Sequence[int]], str]

_INCOMPLETE = "\ufffd"


class Detokenizer:
    """The text of one answer, up to a stop string completed after `min_tokens` tokens.

    Decoding starts a few tokens back rather than at the newest one, because a token's text depends
    on its neighbours (a leading space, a character split over tokens):

        ids     [ ... shown ... | context | new ]
                                 ^ _start  ^ _done
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...] = (), min_tokens: int = 0) -> None:
        self._decode = decode
        self._stop_strings = StopStrings(stop, min_tokens)
        self._ids: list[int] = []
        self._start = 0
        self._done = 0

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the answer, once one did."""
        return self._stop_strings.stopped_by

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
        return self._stop_strings.push(text, len(self._ids))

    def finish(self) -> str:
        """Return what is still held back, except where a stop string ended the answer."""
        if self.stopped:
            return ""
        text = self._stop_strings.push(self._new_text(), len(self._ids))
        self._start = self._done = len(self._ids)
        return text + self._stop_strings.finish()

    def _new_text(self) -> str:
        context = self._decode(self._ids[self._start : self._done])
        return self._decode(self._ids[self._start :])[len(context) :]
