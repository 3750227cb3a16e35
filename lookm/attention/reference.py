"""Attention in readable torch: what every faster path must equal, and the one that runs on CPU.

Knows tensors. Knows nothing about policies: it computes the sums it is asked for. Nothing of size
T x T is ever allocated.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from lookm.attention.api import PartByPart, Statistics
from lookm.pages import Pages, pages_for
from lookm.types import Needs

CHUNK_ROWS = 64  # query rows of the fused pass: their scores against one KV head stay in cache
EXTEND_ROWS = 256
MAX_PADDED_ELEMENTS = 1 << 19  # decode in one call while its gathered keys stay in cache


class ReferenceAttention(PartByPart):
    """`lookm.attention.Attention` in torch."""

    def prefill(
        self,
        q_HTD: torch.Tensor,
        k_KSD: torch.Tensor,
        v_KSD: torch.Tensor,
        *,
        scale: float,
        needs: Needs,
    ) -> tuple[torch.Tensor, Statistics]:
        """SDPA, or one fused chunked pass where sums are needed. See `Attention.prefill`."""
        if needs.sums or needs.squares:
            return _fused(q_HTD, k_KSD, v_KSD, scale, needs)
        statistics = Statistics(window_KT=window_sums(q_HTD, k_KSD, scale, needs.window))
        return _causal(q_HTD, k_KSD, v_KSD, scale), statistics

    def decode(
        self,
        q_BHD: torch.Tensor,
        pages: Pages,
        table_BM: torch.Tensor,
        lengths_B: torch.Tensor,
        *,
        scale: float,
    ) -> torch.Tensor:
        """Gather each sequence's pages, then SDPA. See `Attention.decode`.

        One padded call where the rows are few and calls would cost more, else a call a sequence.
        """
        lengths = lengths_B.tolist()
        longest = max(lengths, default=0)
        if longest == 0:
            return torch.zeros_like(q_BHD)
        row_elements = pages.k_PKND.shape[1] * pages.k_PKND.shape[3]
        # Padding reads rows that count for nothing; while all of them stay in cache, one call is
        # cheaper.
        if longest * len(lengths) * row_elements <= MAX_PADDED_ELEMENTS:
            return _decode_padded(q_BHD, pages, table_BM, lengths_B, longest, scale)
        out_BHD = torch.zeros_like(q_BHD)
        for b, length in enumerate(lengths):
            if length:
                one = slice(b, b + 1)
                out_BHD[one] = _decode_padded(
                    q_BHD[one], pages, table_BM[one], lengths_B[one], length, scale
                )
        return out_BHD


def statistics(
    q_HTD: torch.Tensor, k_KSD: torch.Tensor, *, scale: float, needs: Needs
) -> Statistics:
    """The sums alone, without the attention output: for callers that have no use for it."""
    if needs.sums or needs.squares:
        return _fused(q_HTD, k_KSD, None, scale, needs)[1]
    return Statistics(window_KT=window_sums(q_HTD, k_KSD, scale, needs.window))


def _causal(
    q_HTD: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor, scale: float
) -> torch.Tensor:
    """`out_THD` by SDPA; behind earlier rows 256 queries at a time: the mask stays small."""
    num_queries = q_HTD.shape[1]
    num_before = k_KSD.shape[1] - num_queries
    assert num_before >= 0, "the queries' own rows are the last rows"
    if num_before == 0:
        out_HTD = F.scaled_dot_product_attention(
            q_HTD[None], k_KSD[None], v_KSD[None], is_causal=True, scale=scale, enable_gqa=True
        )[0]
        return out_HTD.transpose(0, 1)
    outs = []
    for start in range(0, num_queries, EXTEND_ROWS):
        end = min(start + EXTEND_ROWS, num_queries)
        mask_TS = None
        if end - start > 1:
            # SDPA's own causal mask is aligned to the first row, ours to the last one.
            mask_TS = q_HTD.new_ones(end - start, num_before + end, dtype=torch.bool)
            mask_TS = mask_TS.tril_(diagonal=num_before + start)
        outs.append(
            F.scaled_dot_product_attention(
                q_HTD[None, :, start:end],
                k_KSD[None, :, : num_before + end],
                v_KSD[None, :, : num_before + end],
                attn_mask=mask_TS,
                scale=scale,
                enable_gqa=True,
            )[0]
        )
    return torch.cat(outs, dim=1).transpose(0, 1)


def _fused(
    q_HTD: torch.Tensor,
    k_KSD: torch.Tensor,
    v_KSD: torch.Tensor | None,
    scale: float,
    needs: Needs,
) -> tuple[torch.Tensor, Statistics]:
    """Output and column sums from one pass over chunks of query rows.

    A chunk's softmax is complete, since it sees all its keys, so no running maximum is kept.
    Without values the output is left undefined.
    """
    num_queries, head_size = q_HTD.shape[1:]
    num_heads, num_rows = k_KSD.shape[:2]
    num_before = num_rows - num_queries
    weigh = _Weigher(k_KSD, scale, rows=min(CHUNK_ROWS, num_queries) * q_HTD.shape[0] // num_heads)
    q_KGTD = q_HTD.reshape(num_heads, -1, num_queries, head_size)
    out_KGTD = torch.empty_like(q_KGTD)
    sums_KS = torch.zeros(num_heads, num_rows, dtype=weigh.softmax_dtype, device=q_HTD.device)
    squares_KS = torch.zeros_like(sums_KS) if needs.squares else None
    v_KSD = None if v_KSD is None else v_KSD.to(weigh.matmul_dtype)
    for start in range(0, num_queries, CHUNK_ROWS):
        end = min(start + CHUNK_ROWS, num_queries)
        seen = num_before + end
        weights_KRS = weigh(q_KGTD[:, :, start:end], seen)
        sums_KS[:, :seen] += weights_KRS.sum(dim=1)
        if v_KSD is not None:
            out_KRD = weigh.narrowed(weights_KRS) @ v_KSD[:, :seen]
            out_KGTD[:, :, start:end] = out_KRD.view(num_heads, -1, end - start, head_size)
        if squares_KS is not None:
            squares_KS[:, :seen] += weights_KRS.square_().sum(dim=1)
    found = Statistics(
        sums_KT=sums_KS,
        squares_KT=squares_KS,
        window_KT=window_sums(q_HTD, k_KSD, scale, needs.window),
    )
    return out_KGTD.flatten(0, 1).transpose(0, 1), found


class _Weigher:
    """Causal softmax of a chunk of queries, in buffers that every chunk uses again.

    Softmax and sums are float32; matrix products are in bfloat16 where the cache is (as in eager
    attention: logits are rounded once), in float32 for float16, in float64 for float64. What a call
    returns is valid until the next one.
    """

    def __init__(self, k_KTD: torch.Tensor, scale: float, *, rows: int) -> None:
        double = k_KTD.dtype == torch.float64
        self.softmax_dtype = torch.float64 if double else torch.float32
        half = k_KTD.dtype == torch.bfloat16
        self.matmul_dtype = torch.bfloat16 if half else self.softmax_dtype
        self._k_KDT = k_KTD.to(self.matmul_dtype).transpose(1, 2)
        self._scale = scale
        shape = (k_KTD.shape[0] * rows * k_KTD.shape[1],)
        self._logits = torch.empty(shape, dtype=self.softmax_dtype, device=k_KTD.device)
        self._weights = torch.empty_like(self._logits)
        self._narrow = torch.empty_like(self._logits, dtype=torch.bfloat16) if half else None

    def __call__(self, q_KGCD: torch.Tensor, seen: int) -> torch.Tensor:
        """`[K, G * C, seen]`: the C queries are the last of the first `seen` tokens.

        keys       0 ... seen - C ... seen
        query 0    x x x x x x                 the last C columns hold the causal triangle
        query C-1  x x x x x x x x x x
        """
        q_KRD = q_KGCD.to(self.matmul_dtype).flatten(1, 2)
        num_queries, shape = q_KGCD.shape[2], (*q_KRD.shape[:2], seen)
        logits_KRT = _part(self._logits, shape)
        product_KRT = logits_KRT if self._narrow is None else _part(self._narrow, shape)
        k_KDT = self._k_KDT[:, :, :seen]
        torch.baddbmm(product_KRT, q_KRD, k_KDT, beta=0, alpha=self._scale, out=product_KRT)
        # Rounded once to bfloat16, as eager attention does, then widened: softmax and sums are
        # float32.
        if self._narrow is not None:
            logits_KRT.copy_(product_KRT)
        # Only the last C columns can lie in a query's future; masking them alone keeps the rest in
        # cache.
        future_CC = q_KGCD.new_ones(num_queries, num_queries, dtype=torch.bool).triu_(1)
        logits_KGCT = logits_KRT.view(*q_KGCD.shape[:3], seen)
        logits_KGCT[..., seen - num_queries :].masked_fill_(future_CC, -torch.inf)
        return torch.softmax(logits_KRT, dim=-1, out=_part(self._weights, shape))

    def narrowed(self, weights_KRT: torch.Tensor) -> torch.Tensor:
        """The weights as the product with the values wants them."""
        if self._narrow is None:
            return weights_KRT
        return _part(self._narrow, weights_KRT.shape).copy_(weights_KRT)


def _part(buffer: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return buffer[: math.prod(shape)].view(*shape)


def window_sums(
    q_HTD: torch.Tensor, k_KSD: torch.Tensor, scale: float, window: int
) -> torch.Tensor | None:
    """`sum_i A_ij` over the last `window` queries (all, where there are fewer)."""
    if not window:
        return None
    num_heads, num_rows, head_size = k_KSD.shape
    num_queries = q_HTD.shape[1]
    q_KGTD = q_HTD.reshape(num_heads, -1, num_queries, head_size)
    rows = min(window, CHUNK_ROWS, num_queries) * q_KGTD.shape[1]
    weigh = _Weigher(k_KSD, scale, rows=rows)
    sums_KS = torch.zeros(num_heads, num_rows, dtype=weigh.softmax_dtype, device=k_KSD.device)
    for start in range(max(0, num_queries - window), num_queries, CHUNK_ROWS):
        end = min(start + CHUNK_ROWS, num_queries)
        seen = num_rows - num_queries + end
        sums_KS[:, :seen] += weigh(q_KGTD[:, :, start:end], seen).sum(dim=1)
    return sums_KS


def _decode_padded(
    q_BHD: torch.Tensor,
    pages: Pages,
    table_BM: torch.Tensor,
    lengths_B: torch.Tensor,
    longest: int,
    scale: float,
) -> torch.Tensor:
    """One SDPA over the first `longest` rows of every sequence, with a mask where they differ."""
    table_BM = table_BM[:, : pages_for(longest, pages.page_tokens)]
    k_BKSD, v_BKSD = (
        part_BMKND.transpose(1, 2).flatten(2, 3)[:, :, :longest]
        for part_BMKND in pages.taken(table_BM, q_BHD.dtype)
    )
    real_BS = torch.arange(longest, device=q_BHD.device) < lengths_B[:, None]
    out_BH1D = F.scaled_dot_product_attention(
        q_BHD[:, :, None],
        k_BKSD,
        v_BKSD,
        attn_mask=real_BS[:, None, None],
        scale=scale,
        enable_gqa=True,
    )
    return out_BH1D[:, :, 0].masked_fill_((lengths_B == 0)[:, None, None], 0)
