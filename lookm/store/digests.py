"""Names for the blocks of a prompt: a block's key says what is in it, and all that is before it.

    tokens   [ 0 ........ 63 | 64 ....... 127 | 128 ...... ]     the last, unfilled block has no key
    keys       k0 = H(salt, ids, images)   k1 = H(k0, ids, images)

Image tokens all have one id, so a block is also named by the images in it: their digests, and where
each begins. Two prompts share a key only where the model computes the same rows for both: the same
ids and pictures in the same places, under the same salt.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256

import numpy as np

from lookm.types import ImageInput

BLOCK_TOKENS = 64


def block_keys(
    prompt_ids: Sequence[int], images: Sequence[ImageInput], image_token_id: int, salt: str = ""
) -> list[bytes]:
    """One key for each full block of the prompt. `images` are in the order of their tokens."""
    ids_T = np.asarray(prompt_ids, dtype=np.int64)
    places = list(_places(ids_T, images, image_token_id))
    keys, before = [], sha256(salt.encode("utf-8", "surrogatepass")).digest()
    for start in range(0, len(ids_T) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        end = start + BLOCK_TOKENS
        named = sha256(before)
        named.update(ids_T[start:end].tobytes())
        for first, last, digest in places:
            if first < end and last >= start:
                named.update(f"{first} {digest}\0".encode("utf-8", "surrogatepass"))
        before = named.digest()
        keys.append(before)
    return keys


def _places(
    ids_T: np.ndarray, images: Sequence[ImageInput], image_token_id: int
) -> Iterator[tuple[int, int, str]]:
    """The first and the last token of each image, and its digest."""
    index_I = np.flatnonzero(ids_T == image_token_id)
    taken = 0
    for image in images:
        own = index_I[taken : taken + image.num_tokens]
        taken += image.num_tokens
        if len(own):
            yield int(own[0]), int(own[-1]), image.digest
