"""Which tokens of a prompt the device holds: written down layer by layer, for requests that ask.

Who does not ask has no `HeldTokens`, and nothing is computed for it. Bits are `numpy.packbits`':
the first of eight tokens is the highest bit of a byte, rows are filled up with zeros. Knows
positions; knows no keys, no pages and no images.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from lookm.errors import RequestError
from lookm.kept import Bits, KeptPositions, Mask
from lookm.policy import Compressed

Shape = tuple[int, int, int]  # layers, KV heads, tokens


def of_one_layer(kept: Compressed) -> KeptPositions:
    """What `lookm.compress` returned, as the positions of a prompt of one layer."""
    held = HeldTokens(kept.positions.shape[1] + kept.evicted.shape[1])
    held.add(kept)
    return held.positions()


class HeldTokens:
    """The layers of one prompt, of which `num_tokens` are looked at, in their order."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._kept: list[torch.Tensor] = []
        self._merged: list[torch.Tensor | None] = []

    def add(self, kept: Compressed) -> None:
        """The next layer was compressed."""
        merged_KT = kept.merged_mask
        self._kept.append(_packed(kept.kept_mask))
        self._merged.append(None if merged_KT is None else _packed(merged_KT))

    def add_recent(self, first: int, num_heads: int) -> None:
        """The next layer has a window: it keeps what is in it, from token `first` on."""
        position_T = torch.arange(self._num_tokens)
        self._kept.append(_packed((position_T >= first).expand(num_heads, -1)))
        self._merged.append(None)

    def positions(self) -> KeptPositions:
        """All of it, when the last layer is through. Raises `RequestError` before the first is."""
        if not self._kept:
            raise RequestError("the prompt has not been through the model yet")
        return KeptPositions(self._num_tokens, self.kept, self.merged)

    @property
    def kept(self) -> Bits:
        """Bits `[L, K, ceil(T / 8)]`. On a GPU this waits for it."""
        return np.stack([bits.cpu().numpy() for bits in self._kept])

    @property
    def merged(self) -> Bits | None:
        """As `kept`; layers that merge nothing have zeros. None where none does."""
        if not any(bits is not None for bits in self._merged):
            return None
        pairs = zip(self._kept, self._merged, strict=True)
        found = [torch.zeros_like(kept) if bits is None else bits for kept, bits in pairs]
        return np.stack([bits.cpu().numpy() for bits in found])


@dataclass(frozen=True, slots=True)
class Before:
    """The beginning of a prompt that was taken over: `num_tokens`, of which the first
    `num_compressed` are no longer a row each; `known` is what was kept of them, if that is known.
    """

    num_tokens: int
    num_compressed: int
    known: KeptPositions | None


def positions(held: HeldTokens | None, shape: Shape, before: Before | None = None) -> KeptPositions:
    """What is held of a prompt of `shape`; all of what was not compressed, now or before."""
    if before is None:
        return KeptPositions(
            num_tokens=shape[2],
            kept=_all(shape) if held is None else held.kept,
            merged=None if held is None else held.merged,
        )
    kept_LKT = np.ones(shape, dtype=bool)
    merged_LKT = np.zeros(shape, dtype=bool)
    if held is not None:
        new = KeptPositions(shape[2] - before.num_tokens, held.kept, held.merged)
        _put(new, kept_LKT[..., before.num_tokens :], merged_LKT[..., before.num_tokens :])
    known, num_unknown = before.known, before.num_compressed
    kept_LKT[..., :num_unknown] = False
    if known is not None:  # of the prompt before; its answer, which follows, is whole
        num_unknown = known.num_unknown
        _put(known, kept_LKT[..., : before.num_tokens], merged_LKT[..., : before.num_tokens])
    return KeptPositions(
        num_tokens=shape[2],
        kept=np.packbits(kept_LKT, axis=-1),
        merged=np.packbits(merged_LKT, axis=-1) if merged_LKT.any() else None,
        num_unknown=num_unknown,
    )


def _put(source: KeptPositions, kept_LKT: Mask, merged_LKT: Mask) -> None:
    """Into the first of them, as far as both reach."""
    count = min(source.num_tokens, kept_LKT.shape[2])
    kept_LKT[..., :count] = source.kept_LKT[..., :count]
    if source.merged_LKT is not None:
        merged_LKT[..., :count] = source.merged_LKT[..., :count]


def _packed(mask_KT: torch.Tensor) -> torch.Tensor:
    """uint8 `[K, ceil(T / 8)]`, as `numpy.packbits` makes them, where the mask is."""
    num_heads, num_tokens = mask_KT.shape
    bits_KB8 = F.pad(mask_KT, (0, -num_tokens % 8)).view(num_heads, -1, 8).to(torch.uint8)
    place_8 = torch.arange(7, -1, -1, dtype=torch.uint8, device=mask_KT.device)
    return (bits_KB8 << place_8).sum(dim=-1, dtype=torch.uint8)


def _all(shape: Shape) -> Bits:
    num_layers, num_heads, num_tokens = shape
    bits = np.packbits(np.ones(num_tokens, dtype=bool))
    return np.ascontiguousarray(np.broadcast_to(bits, (num_layers, num_heads, len(bits))))
