"""One answer's place in its grammar, as the engine sees it (`lookm.sampling.Grammar`).

What may come next is computed in another process, so it is there a moment after a token was noted,
or later: until then the answer is not `ready`. The state belongs to one request and moves with each
chosen token, so a preemption, which keeps the tokens, keeps it too.
"""

from collections.abc import Callable

import numpy as np
import torch

from lookm.errors import QueueFullError, RequestError
from lookm.grammar.wire import Ask, Tell

Send = Callable[[Ask, int, int], None]  # what, which answer, token


class TokenGrammar:
    """See the module. `refusal`: it is none, or cannot be followed any further, which its client
    can change; `failure`: why it cannot go on otherwise."""

    def __init__(self, number: int, param: str, send: Send) -> None:
        self.number = number
        self.param = param
        self.refusal: RequestError | QueueFullError | None = None
        self.failure: str | None = None
        self.complete = False
        self._is_known = False
        self._allowed = b""
        self._send = send

    @property
    def ready(self) -> bool:
        """Whether `mask` knows what may come next."""
        return self._is_known or self.failure is not None

    def mask(self, logits_V: torch.Tensor) -> None:
        """Set to -inf, in place, what must not come next. End tokens may come where it accepts."""
        if self.failure is not None:
            return
        assert self._is_known, "a step is for those that are ready"
        bits = np.unpackbits(np.frombuffer(self._allowed, dtype=np.uint8), bitorder="little")
        allowed = bits[: logits_V.numel()].astype(bool)
        banned_V = torch.ones(logits_V.numel(), dtype=torch.bool)
        banned_V[: allowed.size] = torch.from_numpy(~allowed)
        logits_V.masked_fill_(banned_V.to(logits_V.device), -torch.inf)

    def advance(self, token: int) -> None:
        """Note the token that came."""
        if self.failure is None:
            self._is_known = False
            self._send(Ask.ADVANCE, self.number, token)

    def close(self) -> None:
        """The answer has ended, or nobody wants it any more."""
        self._send(Ask.CLOSE, self.number, 0)

    def hear(self, what: Tell, rest: bytes) -> None:
        """What came of the newest token."""
        if what is Tell.FAILED:
            self.refusal = RequestError(rest.decode(), param=self.param)
        else:
            self._allowed, self._is_known = rest, True
            self.complete = what is Tell.COMPLETE
