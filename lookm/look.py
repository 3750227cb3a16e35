"""Look once: where attention and policy meet, one layer of one prompt at a time.

`look` is the engine's: the prefill pass gives the output and the sums, the policy decides, and what
is kept comes back. `compress` is the library's: plain tensors in, what is kept out, no engine.
Knows nothing about pages, batches or models.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from lookm import policy as policies
from lookm.attention import Attention, masked, spread, statistics
from lookm.errors import PolicyError, RequestError
from lookm.policy import Compressed, Ledger, Recipe, View, scores
from lookm.types import CachePolicy, Needs

# They divide by T - j, the number of queries that see key j in a causal prompt.
CAUSAL_SCORES = frozenset({scores.column_mean, scores.roco})

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What one layer's prefill gives: attention `out_THD` over the whole prompt, and what is kept.

    `compress_s` is the time the policy took, without the attention pass.
    """

    out_THD: torch.Tensor
    compressed: Compressed
    compress_s: float


def kept_rows(
    recipe: Recipe,
    is_image_T: torch.Tensor,
    windows_L: Sequence[int | None],
    *,
    causal: bool,
) -> npt.NDArray[np.int64]:
    """How many rows each layer keeps of this prompt at most, before the prefill.

    Exact, but for recipes that spread their budget by what the layers show. Layers with a window
    are never compressed: where the others are, they keep the rows that later tokens can still see,
    `window - 1`, and lose nothing by it. Raises `PolicyError` where `recipe` has no meaning for
    this prompt on this model.
    """
    num_tokens = is_image_T.shape[0]
    kept = policies.kept_bound(recipe, is_image_T)
    method = recipe.policy.method
    if kept < num_tokens and not causal and recipe.score in CAUSAL_SCORES:
        raise PolicyError(
            f"{method!r} counts how many queries see a key, as if each token saw only those before "
            "it; on this model tokens of this prompt also see later ones: use 'h2o' or 'look-m'."
        )
    if kept < num_tokens and None not in windows_L:
        raise PolicyError(
            f"{method!r} has nothing to drop: every layer of this model sees a window of recent "
            "tokens only, and such layers are not compressed: use 'full'."
        )
    if kept == num_tokens:
        return np.full(len(windows_L), num_tokens, dtype=np.int64)
    bounds = iter(policies.kept_bounds(recipe, is_image_T, windows_L.count(None)))
    rows = [min(num_tokens, window - 1) if window else next(bounds) for window in windows_L]
    return np.array(rows, dtype=np.int64)


def needs_of(recipe: Recipe, is_image_T: torch.Tensor) -> Needs:
    """What `recipe` needs of this prompt: `after_images` as a number of rows."""
    needs = recipe.needs
    if not needs.after_images:  # on CUDA the next line waits for the device
        return needs
    images_I = is_image_T.nonzero()
    if not len(images_I):
        return needs
    return replace(needs, window=max(1, len(is_image_T) - 1 - int(images_I[-1])))


def look(
    q_HTD: torch.Tensor,
    k_KTD: torch.Tensor,
    v_KTD: torch.Tensor,
    *,
    is_image_T: torch.Tensor,
    recipe: Recipe,
    scale: float,
    attention: Attention,
    mask_TT: torch.Tensor | None = None,
    layer: int = 0,
    num_layers: int = 1,
    ledger: Ledger | None = None,
) -> Look:
    """Prefill one layer of a whole prompt and compress what it would cache.

    The output attends to the uncompressed prompt, causally or where `mask_TT` allows. `ledger` is
    the prompt's, the same for all its layers; see `compress`. On CUDA `compress_s` is the time to
    enqueue.
    """
    needs = needs_of(recipe, is_image_T)
    if mask_TT is None:
        out_THD, found = attention.prefill(q_HTD, k_KTD, v_KTD, scale=scale, needs=needs)
    else:
        out_THD, found = masked.prefill(
            q_HTD, k_KTD, v_KTD, scale=scale, mask_TT=mask_TT, needs=needs
        )
    started_s = time.monotonic()
    spread_K = spread.measure(
        q_HTD, k_KTD, scale=scale, is_image_T=is_image_T, needs=needs, mask_TT=mask_TT
    )
    view = View(
        key_KTD=k_KTD,
        value_KTD=v_KTD,
        is_image_T=is_image_T,
        query_HTD=q_HTD,
        scale=scale,
        sums_KT=found.sums_KT,
        squares_KT=found.squares_KT,
        window_KT=found.window_KT,
        density_K=spread_K.density_K,
        entropy_K=spread_K.entropy_K,
        layer=layer,
        num_layers=num_layers,
    )
    compressed = policies.compress(view, recipe, ledger or _one_layer(recipe, view), attention)
    return Look(out_THD, compressed, time.monotonic() - started_s)


@torch.no_grad()
def compress(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    is_image: torch.Tensor,
    policy: CachePolicy | str,
    *,
    scale: float | None = None,
    layer: int = 0,
    num_layers: int = 1,
    ledger: Ledger | None = None,
) -> Compressed:
    """Compress one layer's KV cache of one prompt (LOOK-M, 2406.18139).

    `query` `[H, T, D]`, `key` and `value` `[K, T, D]`, all after RoPE and of one floating dtype
    and device, H a multiple of K; `is_image` `[T]` bool; `policy` a `CachePolicy` or a preset
    string such as `"look-m@0.2"`. `scale` multiplies the logits and defaults to `D ** -0.5`.
    `layer` and `num_layers` matter to policies that treat layers differently. Those that spread
    their budget by what the layers show (`vl-cache`, `meda`, `prefixkv`, `d2o`) need a `ledger` as
    well, one for all layers of a prompt, in order: `lookm.policy.open_ledger(resolve(policy),
    is_image, num_layers)`. Without one a layer is given the nominal budget.

    Scores, similarities and sums are computed in float64; the result has the dtype of the input:
    merged rows of a half-precision cache are rounded once, at the end (pass float32 for more
    digits). Inputs are never changed, and share no memory with the result. Raises `PolicyError`, or
    `RequestError` for tensors that do not fit together.
    """
    recipe = policies.resolve(policy)
    _check(query, key, value, is_image)
    wide_query, wide_key, wide_value = query.double(), key.double(), value.double()
    keeps_all = policies.kept_bound(recipe, is_image) == key.shape[1]
    needs = Needs() if keeps_all else needs_of(recipe, is_image)
    scale = query.shape[2] ** -0.5 if scale is None else scale
    found = statistics(wide_query, wide_key, scale=scale, needs=needs)
    spread_K = spread.measure(wide_query, wide_key, scale=scale, is_image_T=is_image, needs=needs)
    view = View(
        key_KTD=wide_key,
        value_KTD=wide_value,
        is_image_T=is_image,
        query_HTD=wide_query,
        scale=scale,
        sums_KT=found.sums_KT,
        squares_KT=found.squares_KT,
        window_KT=found.window_KT,
        density_K=spread_K.density_K,
        entropy_K=spread_K.entropy_K,
        layer=layer,
        num_layers=num_layers,
    )
    kept = policies.compress(view, recipe, ledger or _one_layer(recipe, view))
    return Compressed(
        key=kept.key.to(key.dtype, copy=True),
        value=kept.value.to(value.dtype, copy=True),
        positions=kept.positions,
        num_evicted=kept.num_evicted,
        num_merged=kept.num_merged,
        compressed=kept.compressed,
    )


def _one_layer(recipe: Recipe, view: View) -> Ledger:
    """A ledger opened at `view`'s layer."""
    num_layers = max(view.num_layers, view.layer + 1)
    return policies.open_ledger(recipe, view.is_image_T, num_layers, layer=view.layer)


def _check(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_image: torch.Tensor
) -> None:
    """Raises `RequestError` unless the tensors are one layer of one prompt."""
    shapes = (
        f"query {list(query.shape)}, key {list(key.shape)}, value {list(value.shape)}, "
        f"is_image {list(is_image.shape)}"
    )
    if any(tensor.dim() != 3 or 0 in tensor.shape for tensor in (query, key, value)):
        raise RequestError(
            f"query must be [H, T, D], key and value [K, T, D], none empty: {shapes}."
        )
    if key.shape != value.shape or query.shape[1:] != key.shape[1:]:
        raise RequestError(f"query, key and value must share T and D, key and value K: {shapes}.")
    if query.shape[0] % key.shape[0]:
        raise RequestError(f"the query heads must be a multiple of the KV heads: {shapes}.")
    if is_image.shape != key.shape[1:2] or is_image.dtype != torch.bool:
        raise RequestError(f"is_image must be bool [T]: {shapes}, {is_image.dtype}.")
    if key.dtype not in _DTYPES or not query.dtype == key.dtype == value.dtype:
        raise RequestError(
            "query, key and value must share one of float16, bfloat16, float32 and float64: "
            f"{query.dtype}, {key.dtype}, {value.dtype}."
        )
    if not query.device == key.device == value.device == is_image.device:
        raise RequestError("query, key, value and is_image must be on one device.")
