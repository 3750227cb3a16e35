"""What images may cost together: those of one request, and those of all.

`Budget` refuses what one request may not have; `Memory` makes wait for what all together may hold;
`Downloads` refuses the greediest request where too much has arrived that nobody has decoded yet.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from lookm.errors import QueueFullError
from server.media.config import MediaConfig
from server.media.media_error import MediaError


class Budget:
    """Bytes still to be received, pixels and images still to be kept for one request."""

    def __init__(self, config: MediaConfig) -> None:
        self._lock = threading.Lock()
        self._config = config
        self._bytes = 0
        self._pixels = 0
        self._images = 0

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

    def take_images(self, num_images: int) -> None:
        """Count pictures, pages and frames, not made yet; raises `MediaError` past the limit."""
        limit = self._config.max_request_images
        with self._lock:
            self._images += num_images
            found = self._images
        if found > limit:
            raise MediaError(
                "image_too_large",
                f"The request has {found} images or more, each page or frame one; {limit} are "
                "allowed. Send fewer, or say which ('pages', 'max_frames').",
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


class Memory:
    """Bytes that decoding may take, all pictures together; who comes first gets them first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.held_bytes = 0

    def check(self, num_bytes: int) -> None:
        """Refuse what would wait for ever. Raises `MediaError`."""
        if num_bytes > self._limit_bytes:
            raise MediaError(
                "image_too_large",
                f"Decoding may take {num_bytes >> 20} MiB; {self._limit_bytes >> 20} MiB are "
                "allowed. Scale it down.",
            )

    @contextlib.asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncIterator[None]:
        """Wait until they are free, and hold them."""
        self.check(num_bytes)
        if self._waiting or not self._fits(num_bytes):
            place = asyncio.get_running_loop().create_future()
            self._waiting.append((num_bytes, place))
            try:
                await place
            except asyncio.CancelledError:
                if place.cancelled():
                    self._give()
                else:
                    self._release(num_bytes)
                raise
        else:
            self.held_bytes += num_bytes
        try:
            yield
        finally:
            self._release(num_bytes)

    def _fits(self, num_bytes: int) -> bool:
        return self.held_bytes + num_bytes <= self._limit_bytes

    def _release(self, num_bytes: int) -> None:
        self.held_bytes -= num_bytes
        self._give()

    def _give(self) -> None:
        """To those who wait, in their order, while it fits."""
        while self._waiting:
            num_bytes, place = self._waiting[0]
            if not place.cancelled():
                if not self._fits(num_bytes):
                    return
                self.held_bytes += num_bytes
                place.set_result(None)
            self._waiting.popleft()


class Downloads:
    """Bytes that were downloaded and wait to be decoded, all requests together."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held: dict[Budget, int] = {}
        self.held_bytes = 0

    @contextlib.contextmanager
    def counted(self, request: Budget) -> Iterator[Callable[[int], None]]:
        """What to call with the bytes of one download; they are held until the block ends.

        It raises `MediaError` past what the request may have, and where too much has arrived for
        all, `QueueFullError` for requests that hold more than an equal share.
        """
        num_bytes = 0

        def take(more_bytes: int) -> None:
            nonlocal num_bytes
            num_bytes += more_bytes
            self._add(request, more_bytes)
            request.take_bytes(more_bytes)
            is_greedy = self._held.get(request, 0) * len(self._held) > self._limit_bytes
            if self.held_bytes > self._limit_bytes and is_greedy:
                raise QueueFullError("Too many images are being downloaded. Try again later.")

        try:
            yield take
        finally:
            self._add(request, -num_bytes)

    def _add(self, request: Budget, num_bytes: int) -> None:
        self.held_bytes += num_bytes
        held_bytes = self._held.pop(request, 0) + num_bytes
        if held_bytes:
            self._held[request] = held_bytes
