"""How the KV cache is read: prefill with column sums, extension, paged decode.

Reading order: `api` (`Attention`, and the `Backend` of all kernels), `reference` (readable torch),
`masked` (prompts whose tokens see later ones), `spread` (what budgets over depth ask for),
`kernels` (C++ for the CPU, Triton for CUDA), `select` (which backend runs).
Knows nothing about policies, pools or models.
"""

from lookm.attention.api import Attention, Backend, ModelKernels, Statistics
from lookm.attention.reference import ReferenceAttention, statistics
from lookm.attention.select import REFERENCE, choose

__all__ = [
    "REFERENCE",
    "Attention",
    "Backend",
    "ModelKernels",
    "ReferenceAttention",
    "Statistics",
    "choose",
    "statistics",
]
