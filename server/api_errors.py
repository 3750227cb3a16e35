"""Every way to fail, and what the client gets: a table of codes, one of exceptions, an envelope.

Knows OpenAI's error envelope and the exceptions of the packages below. Refuses to show internals:
an exception that is in no table becomes `internal_error`, without its message.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException

from lookm import errors as lookm
from server.media import MediaError
from server.worker import worker_errors as worker


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """The HTTP status and OpenAI error type of a code."""

    status: int
    type: str = "invalid_request_error"


CODES: Mapping[str, ErrorKind] = {
    "invalid_json": ErrorKind(400),
    "invalid_type": ErrorKind(400),
    "invalid_value": ErrorKind(400),
    "missing_required_parameter": ErrorKind(400),
    "unknown_parameter": ErrorKind(400),
    "unsupported_parameter": ErrorKind(400),
    "invalid_kv_cache": ErrorKind(400),
    "context_length_exceeded": ErrorKind(400),
    "invalid_image_url": ErrorKind(400),
    "image_fetch_failed": ErrorKind(400),
    "image_too_large": ErrorKind(400),
    "unsupported_image": ErrorKind(400),
    "invalid_image": ErrorKind(400),
    "invalid_file_url": ErrorKind(400),
    "file_fetch_failed": ErrorKind(400),
    "file_too_large": ErrorKind(400),
    "unsupported_file": ErrorKind(400),
    "invalid_file": ErrorKind(400),
    "invalid_video_url": ErrorKind(400),
    "video_fetch_failed": ErrorKind(400),
    "video_too_large": ErrorKind(400),
    "unsupported_video": ErrorKind(400),
    "invalid_video": ErrorKind(400),
    "invalid_api_key": ErrorKind(401, "authentication_error"),
    "policy_not_allowed": ErrorKind(403, "permission_error"),
    "model_not_found": ErrorKind(404),
    "image_not_found": ErrorKind(404),
    "file_not_found": ErrorKind(404),
    "video_not_found": ErrorKind(404),
    "response_not_found": ErrorKind(404),
    "not_found": ErrorKind(404),
    "method_not_allowed": ErrorKind(405),
    "request_timeout": ErrorKind(408),
    "body_too_large": ErrorKind(413),
    "unsupported_media_type": ErrorKind(415),
    "prompt_refused": ErrorKind(422),
    "queue_full": ErrorKind(429, "rate_limit_error"),
    "rate_limit_exceeded": ErrorKind(429, "requests"),  # or "tokens": which limit, as OpenAI's
    "internal_error": ErrorKind(500, "server_error"),
    "engine_failed": ErrorKind(503, "server_error"),
    "engine_unavailable": ErrorKind(503, "server_error"),
    "deadline_exceeded": ErrorKind(504, "server_error"),
}

EXCEPTIONS: Mapping[type[Exception], str] = {
    lookm.PolicyError: "invalid_kv_cache",
    lookm.PromptTooLongError: "context_length_exceeded",
    lookm.QueueFullError: "queue_full",
    lookm.LookmError: "invalid_value",
    worker.WorkerUnavailableError: "engine_unavailable",
    worker.WorkerDiedError: "engine_failed",
    worker.PromptRefusedError: "prompt_refused",
}

MAX_SHOWN_CHARACTERS = 1000  # of a message, and of a param: both may quote what a client sent

RETRY_AFTER_S = {"queue_full": 1, "engine_unavailable": 5}


class ApiError(Exception):
    """A failure that the client gets as it stands; `code` is a key of `CODES`, whose type it has
    unless `type` says otherwise."""

    def __init__(
        self, code: str, message: str, *, param: str | None = None, type: str | None = None
    ) -> None:
        self.message = _short(message)
        super().__init__(self.message)
        self.code = code
        self.param = param and _short(param)
        self.status = CODES[code].status
        self.type = type or CODES[code].type
        self.headers: dict[str, str] = {}
        if code in RETRY_AFTER_S:
            self.headers["retry-after"] = str(RETRY_AFTER_S[code])

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error body."""
        fields = {"message": self.message, "type": self.type, "param": self.param}
        return {"error": fields | {"code": self.code}}


def _short(text: str) -> str:
    """The text; of a longer one its beginning."""
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."


def to_api_error(error: Exception, *, param: str | None = None) -> ApiError:
    """What the client gets for `error`; `param` is used where the error names none."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return _from_http(error)
    if isinstance(error, MediaError):
        return ApiError(error.code, error.message, param=error.param or param)
    for kind in type(error).__mro__:
        if kind in EXCEPTIONS:
            named = getattr(error, "param", None) or param
            return _with_retry(ApiError(EXCEPTIONS[kind], str(error), param=named), error)
    return ApiError("internal_error", "The server failed. The request id names it in the log.")


def _with_retry(response: ApiError, error: Exception) -> ApiError:
    """The worker knows best when to come back, or that coming back is no use."""
    if isinstance(error, worker.WorkerUnavailableError):
        response.headers.pop("retry-after", None)
        if error.retry_after_s is not None:
            response.headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return response


def _from_http(error: HTTPException) -> ApiError:
    """Starlette's own failures: no such route, wrong method."""
    if error.status_code == 404:
        response = ApiError("not_found", "There is no such route. See /docs for those there are.")
    elif error.status_code == 405:
        response = ApiError("method_not_allowed", "This route does not take that method.")
    else:
        response = ApiError("invalid_value", str(error.detail))
    response.headers.update(error.headers or {})
    return response
