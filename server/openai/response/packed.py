"""Log-probabilities that wait for their answer to be whole, packed.

As objects, those of one large answer are 600,000, and Python's garbage collector looks through all
of them again and again while everybody waits. Packed, each token's are one `bytes`.
"""

from collections.abc import Sequence
from typing import overload

import msgspec

from lookm.types import TokenLogprob

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(TokenLogprob).decode


class PackedLogprobs(Sequence[TokenLogprob]):
    """A sequence to which tokens are added; each look at one unpacks it anew."""

    def __init__(self) -> None:
        self._packed: list[bytes] = []

    def add(self, token: TokenLogprob) -> None:
        """The next token's."""
        self._packed.append(_pack(token))

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> TokenLogprob: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenLogprob]: ...
    def __getitem__(self, index: int | slice) -> TokenLogprob | list[TokenLogprob]:
        if isinstance(index, slice):
            return [_unpack(each) for each in self._packed[index]]
        return _unpack(self._packed[index])
