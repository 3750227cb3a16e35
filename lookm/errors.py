"""The error tree. Every message holds the fix.

    LookmError                    the caller's fault, or a limit the caller can change
    ├── PolicyError               a cache policy that does not exist or contradicts itself
    ├── RequestError              a request this engine can never serve
    │   └── PromptTooLongError    more tokens than the model or the page pool can hold
    ├── ModelError                a checkpoint that cannot be loaded or is not supported
    ├── ConfigError               engine settings that cannot be met on this machine
    └── QueueFullError            too many requests are waiting; try again later

Anything else that escapes this package is a bug of ours and raises `AssertionError` or the original
exception.
"""


class LookmError(Exception):
    """Base class. `param` names the request field at fault, as OpenAI's error envelope does."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class PolicyError(LookmError):
    """A cache policy that is unknown, out of range or contradictory."""

    def __init__(self, message: str, *, param: str | None = "kv_cache") -> None:
        super().__init__(message, param=param)


class RequestError(LookmError):
    """A request that can never be served as it stands."""


class PromptTooLongError(RequestError):
    """The prompt, or prompt and answer together, exceed what the model or the pool can hold."""

    def __init__(self, message: str, *, param: str | None = "messages") -> None:
        super().__init__(message, param=param)


class ModelError(LookmError):
    """A checkpoint that cannot be loaded, or a model family without a row in `families`."""


class ConfigError(LookmError):
    """Engine settings that cannot be met on this machine."""


class QueueFullError(LookmError):
    """The waiting queue is at its bound."""


def in_one_line(error: BaseException | None) -> str:
    """What another library says went wrong, at most 300 characters of it."""
    text = " ".join(str(error or "").split())
    is_sentence = " " in text  # a `KeyError` says nothing but its key
    return (text if is_sentence else f"{type(error).__name__} {text}".strip())[:300]
