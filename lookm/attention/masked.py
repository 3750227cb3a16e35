"""Attention of what is not plainly causal: a window of recent tokens, or a mask the model made.

Beside the seam of `api`, not behind it: few layers of few families need it, and the fast paths need
not know. One plain torch implementation each, the same on every device.

    prefill   a whole prompt under a mask, and the sums a policy needs of it
    extend    queries that see only the `window` tokens up to and including themselves
    decode    one query a sequence, against the last `window` rows of its pages

In a windowed layer rows are consecutive tokens, so the last ones are the window. Shapes: see `api`.
"""

import torch
import torch.nn.functional as F

from lookm.attention.api import Statistics
from lookm.pages import Pages
from lookm.types import Needs

CHUNK_ROWS = 64
EXTEND_ROWS = 256


def prefill(
    q_HTD: torch.Tensor,
    k_KTD: torch.Tensor,
    v_KTD: torch.Tensor,
    *,
    scale: float,
    mask_TT: torch.Tensor,
    needs: Needs,
) -> tuple[torch.Tensor, Statistics]:
    """`out_THD` and sums of the attention in which token i sees j where `mask_TT[i, j]`.

    The sums are those of `Statistics`, over this matrix instead of the causal one. The mask is as
    large as the prompt squared, in bytes: transformers made it so.
    """
    if not (needs.sums or needs.squares or needs.window):
        out_HTD = F.scaled_dot_product_attention(
            q_HTD[None], k_KTD[None], v_KTD[None], attn_mask=mask_TT, scale=scale, enable_gqa=True
        )[0]
        return out_HTD.transpose(0, 1), Statistics()
    num_heads, num_tokens, head_size = k_KTD.shape
    dtype = torch.float64 if q_HTD.dtype == torch.float64 else torch.float32
    q_KGTD = q_HTD.reshape(num_heads, -1, num_tokens, head_size).to(dtype)
    k_K1DT, v_K1TD = k_KTD.to(dtype).transpose(1, 2)[:, None], v_KTD.to(dtype)[:, None]
    sums_KT, squares_KT, window_KT = (
        torch.zeros(num_heads, num_tokens, dtype=dtype, device=q_HTD.device) for _ in range(3)
    )
    outs = []
    for start in range(0, num_tokens, CHUNK_ROWS):
        end = min(start + CHUNK_ROWS, num_tokens)
        logits_KGCT = (q_KGTD[:, :, start:end] @ k_K1DT).mul_(scale)
        weights_KGCT = logits_KGCT.masked_fill_(~mask_TT[start:end], -torch.inf).softmax(dim=-1)
        outs.append(weights_KGCT @ v_K1TD)
        in_window = max(0, end - max(start, num_tokens - needs.window))
        window_KT += weights_KGCT[:, :, end - start - in_window :].sum(dim=(1, 2))
        sums_KT += weights_KGCT.sum(dim=(1, 2))
        squares_KT += weights_KGCT.square_().sum(dim=(1, 2))
    found = Statistics(
        sums_KT=sums_KT if needs.sums or needs.squares else None,
        squares_KT=squares_KT if needs.squares else None,
        window_KT=window_KT if needs.window else None,
    )
    return torch.cat(outs, dim=2).flatten(0, 1).to(q_HTD.dtype).transpose(0, 1), found


def extend(
    q_HTD: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor, *, scale: float, window: int
) -> torch.Tensor:
    """`Attention.extend` where query t sees rows `S - T + t - window + 1 .. S - T + t`; `out_THD`.

    256 queries at a time against the rows any of them sees, so that the cost is T x window.
    """
    num_queries = q_HTD.shape[1]
    num_before = k_KSD.shape[1] - num_queries
    assert num_before >= 0, "the queries' own rows are the last rows"
    outs = []
    for start in range(0, num_queries, EXTEND_ROWS):
        end = min(start + EXTEND_ROWS, num_queries)
        first = max(0, num_before + start - window + 1)
        rows_S = torch.arange(first, num_before + end, device=q_HTD.device)
        own_T1 = torch.arange(num_before + start, num_before + end, device=q_HTD.device)[:, None]
        outs.append(
            F.scaled_dot_product_attention(
                q_HTD[None, :, start:end],
                k_KSD[None, :, first : num_before + end],
                v_KSD[None, :, first : num_before + end],
                attn_mask=(rows_S <= own_T1) & (rows_S > own_T1 - window),
                scale=scale,
                enable_gqa=True,
            )[0]
        )
    return torch.cat(outs, dim=1).transpose(0, 1)


def decode(
    q_BHD: torch.Tensor,
    pages: Pages,
    table_BM: torch.Tensor,
    lengths_B: torch.Tensor,
    *,
    scale: float,
    window: int,
) -> torch.Tensor:
    """`Attention.decode` against the last `window` of the first `lengths_B[b]` rows; `out_BHD`.

    Example: pages of 4 rows, length 10, window 3: rows 7, 8 and 9, in the second and third page.
    """
    page_tokens = pages.page_tokens
    width = min(window, int(lengths_B.max()))
    row_BS = (lengths_B - width).clamp(min=0)[:, None] + torch.arange(
        width, device=lengths_B.device
    )
    real_BS = row_BS < lengths_B[:, None]
    # Shorter sequences have fewer than `width` rows.
    row_BS = torch.where(real_BS, row_BS, 0)  # any row that exists: it is masked
    page_BS = table_BM.long().gather(1, row_BS // page_tokens)
    at = (page_BS, slice(None), row_BS % page_tokens)
    k_BKSD, v_BKSD = (part.transpose(1, 2) for part in pages.taken(at, q_BHD.dtype))
    out_BH1D = F.scaled_dot_product_attention(
        q_BHD[:, :, None],
        k_BKSD,
        v_BKSD,
        attn_mask=real_BS[:, None, None],
        scale=scale,
        enable_gqa=True,
    )
    return out_BH1D[:, :, 0]
