"""Vision features by image content, least recently used out first, within a byte limit.

The second turn of a chat sends the same images again; they are not encoded again. Where a family
has two layouts of an image, `images.arranged` has given them two digests.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from lookm.types import ImageInput


class FeatureCache:
    """Features `[F, N, E]` keyed by an image's digest. `max_bytes` 0 caches nothing."""

    def __init__(
        self, encode: Callable[[Sequence[ImageInput]], list[torch.Tensor]], max_bytes: int
    ) -> None:
        self._encode = encode
        self._max_bytes = max_bytes
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.used_bytes = 0
        self.queries = 0
        self.hits = 0

    def get(self, images: Sequence[ImageInput]) -> list[torch.Tensor]:
        """The images' features; those that are not held are encoded now, together."""
        found: dict[str, torch.Tensor] = {}
        missing: dict[str, ImageInput] = {}
        for image in images:
            held = self._features.get(image.digest)
            if held is None:
                missing[image.digest] = image
                continue
            self._features.move_to_end(image.digest)
            found[image.digest] = held
        encoded = self._encode(list(missing.values())) if missing else []
        self.queries += len(images)  # only now: encoding may pause, and is asked for again
        self.hits += len(images) - len(missing)
        for digest, features_FNE in zip(missing, encoded, strict=True):
            found[digest] = features_FNE
            self._hold(digest, features_FNE)
        return [found[image.digest] for image in images]

    def clear(self) -> None:
        """Hold nothing: memory is short."""
        self._features.clear()
        self.used_bytes = 0

    def _hold(self, digest: str, features_FNE: torch.Tensor) -> None:
        size = features_FNE.nbytes
        if size > self._max_bytes:
            return
        while self.used_bytes + size > self._max_bytes:
            _, dropped = self._features.popitem(last=False)
            self.used_bytes -= dropped.nbytes
        self._features[digest] = features_FNE
        self.used_bytes += size
