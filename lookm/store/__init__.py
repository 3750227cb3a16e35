"""What outlives a request: raw keys and values of prompts in host memory, by prefix.

Reading order: `digests` names the blocks of a prompt, `arena` has the memory for them, `transfer`
moves rows between it and the device, `blocks` finds them again, within a byte limit, and `capture`
fills them while a prompt is prefilled. One store for all policies: what the device keeps is decided
anew for each prompt. Knows digests, rows and sums; knows nothing about policies, pages or models.
"""

from lookm.store.blocks import OF_WINDOWS, Prefix, PromptStore, Snapshot
from lookm.store.capture import Capture
from lookm.store.digests import BLOCK_TOKENS, block_keys

__all__ = [
    "BLOCK_TOKENS",
    "OF_WINDOWS",
    "Capture",
    "Prefix",
    "PromptStore",
    "Snapshot",
    "block_keys",
]
