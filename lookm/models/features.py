"""Vision features by image content, least recently used out first, within a byte limit.

The second turn of a chat sends the same images again; they are not encoded again. Where a family
has two layouts of an image, `images.arranged` has given them two digests.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch

from lookm.types import ImageInput


class FeatureCache:
    """Features `[F, N, E]` keyed by an image's digest. `max_bytes` 0 caches nothing."""

    def __init__(self, encode: Callable[[ImageInput], torch.Tensor], max_bytes: int) -> None:
        self._encode = encode
        self._max_bytes = max_bytes
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.used_bytes = 0
        self.queries = 0
        self.hits = 0

    def get(self, image: ImageInput) -> torch.Tensor:
        """The image's features, encoded now if they are not held."""
        self.queries += 1
        held = self._features.get(image.digest)
        if held is not None:
            self.hits += 1
            self._features.move_to_end(image.digest)
            return held
        features_FNE = self._encode(image)
        self._hold(image.digest, features_FNE)
        return features_FNE

    def _hold(self, digest: str, features_FNE: torch.Tensor) -> None:
        size = features_FNE.nbytes
        if size > self._max_bytes:
            return
        while self.used_bytes + size > self._max_bytes:
            _, dropped = self._features.popitem(last=False)
            self.used_bytes -= dropped.nbytes
        self._features[digest] = features_FNE
        self.used_bytes += size
