"""What can go wrong between the two processes.

WorkerError
├── WorkerUnavailableError    no worker can take the request now (starting, draining, given up)
│   └── StoppingError         and it was under way: the error comes before what waits to be sent
├── WorkerDiedError           the worker died while it held the request
└── PromptRefusedError        this prompt was alone on the worker when it died, more than once
WireError                     bytes that are not one of our messages: a bug of ours
"""

from typing import Literal, get_args

#: failed: the engine raised; crashed: a fault ended the process, or it left; out_of_memory: the
#: system took it; killed: somebody did; hung: a step did not end; stopped: it did not stir;
#: load: it never was ready.
Cause = Literal["failed", "crashed", "out_of_memory", "killed", "hung", "stopped", "load"]
CAUSES: tuple[Cause, ...] = get_args(Cause)


class WorkerError(Exception):
    """The engine process cannot answer. The message may be shown to API clients."""


class WorkerUnavailableError(WorkerError):
    """Nothing was started. `retry_after_s`: when to try again; None where that cannot help."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class StoppingError(WorkerUnavailableError):
    """The server ends with the request unanswered. Of what waits to be sent nothing is sent any
    more: that may be minutes of work, for a client that does not read."""

    def __init__(self) -> None:
        super().__init__("The server is stopping. Send the request again.", retry_after_s=10.0)


class WorkerDiedError(WorkerError):
    """The worker ended with the request unanswered; what was streamed so far is incomplete."""

    def __init__(self, message: str, *, cause: Cause = "crashed") -> None:
        super().__init__(message)
        self.cause = cause


class PromptRefusedError(WorkerError):
    """The prompt is not tried again for a while."""


class WireError(Exception):
    """Frames that do not decode to a known message."""
