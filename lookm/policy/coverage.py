"""The score of `look-m-plus`: text that is asked for, and images evenly.

Knows queries' attention and which tokens are images'. An image's patches are many and alike: what
matters is that every part of it is represented, and what merges into a kept patch is not lost. Text
tokens are few and unlike: those that the question looks at are kept, but never so many that none of
the budget is left for images.
"""

import torch

from lookm.policy.view import View, required

TEXT_SHARE = 0.75  # of what is kept, at most, while there are images to keep
_GOLDEN = 0.6180339887498949  # steps of this fraction of a circle leave no large gap, however many
_HEAD, _LAYER = 0.7548776662466927, 0.5698402909980532


def covering(view: View) -> torch.Tensor:
    """Minus the place in line: of any number of tokens at the front, at most 3/4 are text.

    Text stands in line by the attention of the queries after the last image (`Needs.after_images`,
    as VL-Cache, 2410.23317), images by `even_places`. While both last:

        text i has place i / 0.75, image token j has place j / 0.25

    and where one is used up the other follows on. Every image gives up the same share, whatever
    the budget, and each head keeps other patches than the next.
    """
    text_T = ~view.is_image_T
    num_text = int(text_T.sum())
    asked_KT = required(view.window_KT).masked_fill(view.is_image_T, -torch.inf)
    text_KT = _ranks(-asked_KT).to(torch.float32)
    image_KT = _ranks(even_places(view).masked_fill(text_T, torch.inf)).to(torch.float32)
    place_KT = torch.where(
        text_T,
        text_KT / TEXT_SHARE,
        torch.minimum(image_KT / (1 - TEXT_SHARE), num_text + image_KT),
    )
    return -place_KT


def even_places(view: View) -> torch.Tensor:
    """`frac(0.618.. i + phase)` for the i-th image token, float64 `[K, T]`, in [0, 1).

    Tokens whose place is below any f are a share f of every image, evenly spread (the gaps have at
    most three lengths). The phase differs between heads and layers.
    """
    index_T = view.is_image_T.cumsum(dim=0).double() - 1
    head_K = torch.arange(view.num_heads, device=index_T.device, dtype=torch.float64)
    phase_K1 = (_HEAD * head_K + _LAYER * view.layer)[:, None]
    return (_GOLDEN * index_T + phase_K1).remainder(1)


def _ranks(value_KT: torch.Tensor) -> torch.Tensor:
    """Each value's place in ascending order, the earlier of equals first."""
    order_KT = value_KT.argsort(dim=1, stable=True)
    ranks_T = torch.arange(value_KT.shape[1], device=value_KT.device)
    return torch.empty_like(order_KT).scatter_(1, order_KT, ranks_T.expand_as(order_KT))
