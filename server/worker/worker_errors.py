"""What can go wrong between the two processes. None of it is the caller's fault.

WorkerError
├── WorkerUnavailableError    no worker can take the request now (starting, draining, given up)
└── WorkerDiedError           the worker died while it held the request
WireError                     bytes that are not one of our messages: a bug of ours
"""


class WorkerError(Exception):
    """The engine process cannot answer. The message may be shown to API clients."""


class WorkerUnavailableError(WorkerError):
    """Nothing was started. `retry_after_s`: when to try again; None where that cannot help."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WorkerDiedError(WorkerError):
    """The worker ended with the request unanswered; what was streamed so far is incomplete."""


class WireError(Exception):
    """Frames that do not decode to a known message."""
