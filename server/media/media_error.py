"""The one way to fail. The sender of the image can mend it, and the message says how.

code                   status   when
invalid_image_url      400      not a URL we would follow: scheme, syntax, address, port, base64
image_fetch_failed     400      the host did not deliver: name, connection, status, time
image_too_large        400      bytes, pixels or shape over a limit, of one image or of all
unsupported_image      400      a format we do not decode, or an animation
invalid_image          400      damaged, truncated or empty

invalid_file_url       400      the same of a file: a document, or a picture that is sent as one
file_fetch_failed      400      the host did not deliver
file_too_large         400      bytes, pages, pixels, memory or time over a limit
unsupported_file       400      neither a PDF nor a picture; or the server reads no PDFs
invalid_file           400      damaged, truncated, encrypted or empty
"""

from collections.abc import Mapping
from typing import Literal

Code = Literal[
    "invalid_image_url",
    "image_fetch_failed",
    "image_too_large",
    "unsupported_image",
    "invalid_image",
    "invalid_file_url",
    "file_fetch_failed",
    "file_too_large",
    "unsupported_file",
    "invalid_file",
]
OF_FILES: Mapping[Code, Code] = {
    "invalid_image_url": "invalid_file_url",
    "image_fetch_failed": "file_fetch_failed",
    "image_too_large": "file_too_large",
    "unsupported_image": "unsupported_file",
    "invalid_image": "invalid_file",
}


class MediaError(Exception):
    """An image that cannot be used. `param` is what the caller of `load` called it.

    The message never holds the URL, and never an address the server found behind it.
    """

    def __init__(self, code: Code, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.param = param
        self.status = 400


def of_file(error: MediaError) -> MediaError:
    """The same error, of a file."""
    message = error.message
    if error.code == "unsupported_image":
        message = f"The file is no PDF, and no picture: {message}"
    return MediaError(OF_FILES.get(error.code, error.code), message, param=error.param)
