"""The one way to fail. The sender of the media can mend it, and the message says how.

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

invalid_video_url      400      the same of a video
video_fetch_failed     400      the host did not deliver
video_too_large        400      bytes, pixels, duration, or time to decode over a limit
unsupported_video      400      a container or codec we do not decode; or nothing that decodes
invalid_video          400      damaged, truncated or without a picture
video_not_found        404      named by its digest, and not remembered (any more)
"""

from typing import Literal, cast

Kind = Literal["image", "file", "video"]

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
    "invalid_video_url",
    "video_fetch_failed",
    "video_too_large",
    "unsupported_video",
    "invalid_video",
    "video_not_found",
]


class MediaError(Exception):
    """Media that cannot be used. `param` is what the caller of `load` called it.

    The message never holds the URL, and never an address the server found behind it.
    """

    def __init__(self, code: Code, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.param = param
        self.status = 404 if code == "video_not_found" else 400


def of_kind(error: MediaError, kind: Kind, param: str | None) -> MediaError:
    """The same error, of such a part."""
    message = error.message
    if kind == "file" and error.code == "unsupported_image":
        message = f"The file is no PDF, and no picture: {message}"
    code = cast(Code, error.code.replace("image", kind))
    return MediaError(code, message, param=error.param or param)
