"""The score of `look-m-plus`: text that is asked for, and images evenly.

Knows queries' attention and which tokens are images'. An image's patches are many and alike: what
matters is that every part of it is represented, and what merges into a kept patch is not lost. Text
tokens are few and unlike: those that the question looks at are kept, but never so many that none of
the budget is left for images.
"""

from collections.abc import Callable

import torch

from lookm.policy.scores import Score, window_sum
from lookm.policy.view import View

TEXT_SHARE = 0.75  # of what is kept, at most, while there are images to keep
Places = Callable[[View], torch.Tensor]
_GOLDEN = 0.6180339887498949  # steps of this fraction of a circle leave no large gap, however many
_HEAD, _LAYER = 0.7548776662466927, 0.5698402909980532


def even_places(view: View) -> torch.Tensor:
    """`frac(0.618.. i + phase)` for the i-th image token, float64 `[K, T]`, in [0, 1).

    Tokens whose place is below any f are a share f of every image, evenly spread (the gaps have at
    most three lengths). The phase differs between heads and layers.
    """
    index_T = view.is_image_T.cumsum(dim=0).double() - 1
    head_K = torch.arange(view.num_heads, device=index_T.device, dtype=torch.float64)
    phase_K1 = (_HEAD * head_K + _LAYER * view.layer)[:, None]
    return (_GOLDEN * index_T + phase_K1).remainder(1)


def in_line(
    text: Score, images: Places, text_share: float | Places, *, offset: float = 0.0
) -> Score:
    """A score made of two: minus the place in one line of text (by score) and images (by place).

    While both last, text token i has place `(i + offset) / s` and image token j has
    `(j + offset) / (1 - s)`, so that of any number at the front at most a share s is text, or with
    an offset of 0.5 that share, rounded; where one is used up the other follows on. The share may
    be each head's own, `[K, 1]`.
    """

    def score(view: View) -> torch.Tensor:
        share = text_share(view) if callable(text_share) else text_share
        text_T = ~view.is_image_T
        text_KT = _ranks(-text(view).masked_fill(view.is_image_T, -torch.inf)).float()
        image_KT = _ranks(images(view).masked_fill(text_T, torch.inf)).float()
        text_KT, image_KT = text_KT + offset, image_KT + offset
        both_last_KT = image_KT / (1 - share)
        image_KT = torch.minimum(both_last_KT, text_T.sum() + image_KT)
        return -torch.where(text_T, text_KT / share, image_KT)

    return score


#: Text by the attention of the queries after the last image (with `Needs.after_images`; VL-Cache,
#: 2410.23317), images by `even_places`.
covering = in_line(window_sum, even_places, TEXT_SHARE)


def _ranks(value_KT: torch.Tensor) -> torch.Tensor:
    """Each value's place in ascending order, the earlier of equals first."""
    order_KT = value_KT.argsort(dim=1, stable=True)
    ranks_T = torch.arange(value_KT.shape[1], device=value_KT.device)
    return torch.empty_like(order_KT).scatter_(1, order_KT, ranks_T.expand_as(order_KT))
