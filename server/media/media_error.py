"""The one way to fail. The sender of the image can mend it, and the message says how.

code                   status   when
invalid_image_url      400      not a URL we would follow: scheme, syntax, address, port, base64
image_fetch_failed     400      the host did not deliver: name, connection, status, time
image_too_large        400      bytes, pixels or shape over a limit, of one image or of all
unsupported_image      400      a format we do not decode, or an animation
invalid_image          400      damaged, truncated or empty
"""

from typing import Literal

Code = Literal[
    "invalid_image_url",
    "image_fetch_failed",
    "image_too_large",
    "unsupported_image",
    "invalid_image",
]


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
