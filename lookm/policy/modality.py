"""Two published methods that ask how much a head, or a layer, has to do with images.

AirCache (2503.23956): a few text tokens observe the images; layers get more where they look at
images much, and at few of them. MadaKV (2506.15724): each head divides its rows between text and
images by what it looks at; what a layer does not need is left to those after it. Knows queries'
attention and which tokens are images'. Neither has published code: what their papers leave open,
and what our ledger must hold (every total exact, every layer between N/2 and 3N/2, layers seen one
by one), is said below as our reading.
"""

from collections.abc import Sequence

import torch

from lookm.policy.coverage import in_line
from lookm.policy.depth import MAX_SHARE, MIN_SHARE
from lookm.policy.scores import wide, window_sum
from lookm.policy.view import View, required

ELITE = 0.9  # AirCache's alpha
COVERED = 0.9  # MadaKV's theta
PROXIES = 32  # MadaKV's last tokens of the prompt
CHUNK_ROWS = 64
_NEVER_ZERO = 1e-6


def elite_attention(view: View) -> torch.Tensor:
    """AirCache's importance: `I_j = mean over elite i of softmax(q_i K / sqrt(D))_j`, `[K, T]`.

    Elite are the text tokens j whose weight in the last text token's attention over text alone is
    at least 0.9 of the largest. They attend to image tokens and to each other, to nothing else.

    Our reading: text is what follows the last image, as in the paper's `X = (X_v, X_t)`: were the
    text before counted, the first token of the prompt, an attention sink, would be the only elite
    one, and see no image. Where nothing follows it is all text, or without any the last token. All
    per KV head, means over its query heads; causal. Text that is not elite scores 0.
    """
    key_KTD, query_HTD = wide(view.key_KTD), wide(required(view.query_HTD))
    num_heads, num_tokens, head_size = key_KTD.shape
    query_KGTD = query_HTD.reshape(num_heads, -1, num_tokens, head_size)
    place_T = torch.arange(num_tokens, device=key_KTD.device)
    text_T = _observers(view.is_image_T, place_T)
    last = (place_T * text_T).max()
    logits_KGT = (query_KGTD[:, :, last, None] @ key_KTD.transpose(1, 2)[:, None]).squeeze(2)
    logits_KGT = (logits_KGT * view.scale).masked_fill(~text_T, -torch.inf)
    share_KT = logits_KGT.softmax(dim=2).mean(dim=1)
    elite_KT = text_T & (share_KT >= ELITE * share_KT.amax(dim=1, keepdim=True))
    total_KT = torch.zeros_like(share_KT)
    elite_E = elite_KT.any(dim=0).nonzero().flatten()
    for start in range(0, len(elite_E), CHUNK_ROWS):
        rows_R = elite_E[start : start + CHUNK_ROWS]
        logits_KGRT = (query_KGTD[:, :, rows_R] @ key_KTD.transpose(1, 2)[:, None]) * view.scale
        # A row's own key is among those an elite row sees; it keeps other heads' rows finite.
        seen_KRT = (view.is_image_T | elite_KT)[:, None] & (place_T <= rows_R[:, None])
        seen_KRT = seen_KRT | (place_T == rows_R[:, None])
        weights_KGRT = logits_KGRT.masked_fill(~seen_KRT[:, None], -torch.inf).softmax(dim=3)
        total_KT += (weights_KGRT.mean(dim=1) * elite_KT[:, rows_R, None]).sum(dim=1)
    return total_KT / elite_KT.sum(dim=1, keepdim=True)


def _observers(is_image_T: torch.Tensor, place_T: torch.Tensor) -> torch.Tensor:
    """Text after the last image; else all text; else the last token. Bool `[T]`."""
    after_T = place_T > (place_T * is_image_T).max()
    after_T = torch.where(is_image_T.any(), after_T, ~is_image_T)
    text_T = torch.where(after_T.any(), after_T, ~is_image_T)
    return torch.where(text_T.any(), text_T, place_T == place_T[-1])


def strength_and_skew(view: View) -> torch.Tensor:
    """AirCache's measures of a layer, and how many tokens are text: float64 `[3]`.

    Strength is `sum_v I_v`; skewness `n / ((n - 1)(n - 2)) sum_v ((I_v - mean) / std)^3` over the n
    image tokens. Our reading: I is the mean over heads, std that of a sample, and a distribution
    without a long upper tail (skewness below 0, or fewer than 3 tokens) has skewness 0.
    """
    image_V = elite_attention(view).double().mean(dim=0)[view.is_image_T]
    count = image_V.shape[0]
    skew = image_V.new_zeros(())
    if count > 2:
        from_mean_V = image_V - image_V.mean()
        unit_V = from_mean_V / from_mean_V.square().sum().div(count - 1).sqrt().clamp(min=1e-300)
        skew = unit_V.pow(3).sum().clamp(min=0) * (count / ((count - 1) * (count - 2)))
    text = image_V.new_tensor(view.num_tokens - count)
    return torch.stack((image_V.sum(), skew, text))


def by_strength_and_skew(measures: Sequence[torch.Tensor], nominal: int) -> float:
    """AirCache's budget `(s't + s'k) / 2 r`, of images alone: text is kept beside it.

    Our reading of "normalised across layers": divided by the mean, over the layers seen so far.
    """
    found_L3 = torch.stack(list(measures))
    mean_2 = found_L3[:, :2].mean(dim=0)
    share_2 = torch.where(mean_2 > 0, found_L3[-1, :2] / mean_2.clamp(min=1e-300), 1.0)
    text = min(float(found_L3[-1, 2]), nominal)
    return text + float(share_2.mean()) * (nominal - text)


def text_preference(view: View) -> torch.Tensor:
    """MadaKV: `w_t / (w_v + w_t)` of each head, `[K, 1]`; w adds up the proxies' attention."""
    psi_KT = window_sum(view)
    text_K1 = (psi_KT * ~view.is_image_T).sum(dim=1, keepdim=True)
    share_K1 = text_K1 / psi_KT.sum(dim=1, keepdim=True)
    return share_K1.clamp(_NEVER_ZERO, 1 - _NEVER_ZERO)


#: MadaKV's eviction: a head's budget phi is `w_t / (w_v + w_t) phi` for text and the rest for
#: images, each filled by `psi(i) = sum over proxies j of A_ji`. Our reading: the proxies are the
#: last 32 tokens; halves are rounded; where a modality has fewer tokens the other gets the rest.
preferring = in_line(window_sum, lambda view: -window_sum(view), text_preference, offset=0.5)


def demand(view: View) -> torch.Tensor:
    """MadaKV: `k_v + k_t`, the fewest tokens of each modality that hold 0.9 of its psi; mean over
    heads. Float64 `[2]`: the demand, and of how many layers this is one.

    Our reading: theta is 0.9; the text that we have of the paper does not say.
    """
    psi_KT = window_sum(view).double()
    needed = psi_KT.new_zeros(())
    for own_T in (view.is_image_T, ~view.is_image_T):
        sorted_KT = (psi_KT * own_T).sort(dim=1, descending=True).values
        total_K1 = sorted_KT.sum(dim=1, keepdim=True)
        short_KT = sorted_KT.cumsum(dim=1) < COVERED * total_K1
        needed = needed + (short_KT.sum(dim=1) + (total_K1[:, 0] > 0)).double().mean()
    return torch.stack((needed, needed.new_tensor(view.num_layers)))


def carried(measures: Sequence[torch.Tensor], nominal: int) -> float:
    """MadaKV's compensation: `phi_(l+1) = phi_l - (k_l - phi_l) / (L - l)`, from phi_1 = N.

    A layer keeps its demand k, and those after it share what it took too much or left over. Our
    reading: k is a mean over heads, and between phi/2 and 3 phi/2.
    """
    phi = wanted = float(nominal)
    for number, measure in enumerate(measures, start=1):
        wanted = min(max(float(measure[0]), MIN_SHARE * phi), MAX_SHARE * phi)
        phi -= (wanted - phi) / max(1.0, float(measure[1]) - number)
    return wanted
