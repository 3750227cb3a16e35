"""How the KV cache is read: prefill with column sums, extension, paged decode.

Reading order: `api` (the seam), `reference` (readable torch), `masked` (prompts whose tokens see
later ones), `spread` (what budgets over depth ask for), `kernels` (C++ for the CPU, Triton for
CUDA), `select` (which one runs).
Knows nothing about policies, pools or models.
"""

from lookm.attention.api import Attention, Statistics
from lookm.attention.reference import ReferenceAttention, statistics
from lookm.attention.select import choose, page_writer

__all__ = ["Attention", "ReferenceAttention", "Statistics", "choose", "page_writer", "statistics"]
