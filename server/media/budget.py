"""What all images of one request may cost together. Taken from the event loop and from threads."""

import threading

from server.media.config import MediaConfig
from server.media.media_error import MediaError


class Budget:
    """Bytes still to be received and pixels still to be kept for one request."""

    def __init__(self, config: MediaConfig) -> None:
        self._lock = threading.Lock()
        self._config = config
        self._bytes = 0
        self._pixels = 0

    def take_bytes(self, num_bytes: int) -> None:
        """Count encoded bytes; raises `MediaError` past the limit."""
        limit = self._config.max_request_bytes
        with self._lock:
            self._bytes += num_bytes
            over = self._bytes > limit
        if over:
            raise MediaError(
                "image_too_large",
                f"The images of this request have more than {limit} bytes together. Send fewer or "
                "smaller images.",
            )

    def take_pixels(self, num_pixels: int) -> None:
        """Count decoded pixels; raises `MediaError` past the limit."""
        limit = self._config.max_request_pixels
        with self._lock:
            self._pixels += num_pixels
            over = self._pixels > limit
        if over:
            raise MediaError(
                "image_too_large",
                f"The images of this request have more than {limit} pixels together. Send fewer or "
                "smaller images.",
            )
