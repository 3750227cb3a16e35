"""Look once: where attention and policy meet, one layer of one prompt at a time.

`PromptLook` is the engine's: opened once for a prompt, it gives each layer's attention output, adds
up the sums that the policy scores by, and decides what is kept. `compress` is the library's: plain
tensors in, what is kept out, no engine. Knows nothing about pages, batches or models.

    look = PromptLook(PromptPolicy(recipe, is_image_T, ...), ...)   once
    layer = look.layer(l, scale)                                    for each layer, in order
    out_THD = layer.attend(q_HTD, k_KSD, v_KSD)                     its rows, in parts or at once
    kept = layer.compress(q_HTD, k_KTD, v_KTD)                      when all rows have been seen
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from lookm import policy as policies
from lookm.attention import (
    REFERENCE,
    Backend,
    Statistics,
    masked,
    spread,
    statistics,
)
from lookm.attention.spread import Spread
from lookm.errors import RequestError
from lookm.held import HeldTokens
from lookm.policy import Compressed, PromptPolicy, View
from lookm.policy.depth import Ledger
from lookm.types import CachePolicy, Needs

#: Sums over rows of one layer that add up, by what they are: `sums`, `squares` and `window` of
#: `Statistics`, `[K, n]`; `dense` and `visible` of `Spread`, `[K]` and one number.
Seen = Mapping[str, torch.Tensor]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class PromptLook:
    """One prompt under one policy. Its life is the prompt's: it may be spread over many steps.

    `is_image_T` is where the layers' tensors are. The totals count what the layers have kept so
    far; on CUDA `compress_s` is the time to enqueue. `held` writes down which tokens those are.
    """

    def __init__(
        self,
        policy: PromptPolicy,
        is_image_T: torch.Tensor,
        *,
        num_layers: int,
        backend: Backend,
        held: HeldTokens | None = None,
    ) -> None:
        self.policy = policy
        self.held = held
        self.is_image_T = is_image_T
        self.num_layers = num_layers
        self.backend = backend
        self.num_seen = 0  # layers that were compressed
        self.num_evicted = self.num_merged = 0
        self.compress_s = 0.0

    def layer(
        self, index: int, scale: float, known: Seen | None = None, *, before: int = 0
    ) -> "LayerLook":
        """The next layer to be seen; layers are compressed in order, each once.

        `known` is of its first rows, where they were seen before. The first `before` of the rows
        that are attended to are no part of the prompt.
        """
        return LayerLook(self, index, scale, known or {}, before)


class LayerLook:
    """One layer of the prompt: all its rows are seen, then it is decided what is kept of them.

    Sums over the attention matrix add up over rows, so the rows may come part after part.
    """

    def __init__(
        self, prompt: PromptLook, index: int, scale: float, known: Seen, before: int
    ) -> None:
        self._prompt = prompt
        self._before = before
        self._index = index
        self._scale = scale
        self.statistics = Statistics(known.get("sums"), known.get("squares"), known.get("window"))
        self._spread = Spread(dense_K=known.get("dense"), visible=known.get("visible"))

    @property
    def seen(self) -> Seen:
        """What is known of the rows so far."""
        statistics, spread = self.statistics, self._spread
        parts = {
            "sums": statistics.sums_KT,
            "squares": statistics.squares_KT,
            "window": statistics.window_KT,
            "dense": spread.dense_K,
            "visible": spread.visible,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def attend(
        self,
        q_HTD: torch.Tensor,
        k_KSD: torch.Tensor,
        v_KSD: torch.Tensor,
        *,
        mask_TT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`out_THD` of the next T rows, which are the last of the S rows so far.

        Each sees the uncompressed prompt up to itself, or where `mask_TT` allows.
        """
        if mask_TT is None:
            return self.attend_parts(q_HTD, k_KSD, v_KSD, [q_HTD.shape[1]])[0]
        needs = self._needs(q_HTD, k_KSD)
        out_THD, found = masked.prefill(
            q_HTD, k_KSD, v_KSD, scale=self._scale, mask_TT=mask_TT, needs=needs
        )
        self._add(found, q_HTD, k_KSD, needs, mask_TT)
        return out_THD

    def attend_parts(
        self, q_HTD: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor, ends: Sequence[int]
    ) -> tuple[torch.Tensor, list[Seen]]:
        """`attend`, and what is known at the ends of parts of the T rows; the last is T."""
        before = k_KSD.shape[1] - q_HTD.shape[1]
        queries = [q_HTD[:, start:end] for start, end in pairwise((0, *ends))]
        keys = [k_KSD[:, : before + end] for end in ends]
        needs = [self._needs(q, k) for q, k in zip(queries, keys, strict=True)]
        out_THD, found = self._prompt.backend.attention.prefill_parts(
            q_HTD, k_KSD, v_KSD, scale=self._scale, ends=ends, needs=needs
        )
        so_far = []
        for q_HCD, k_KRD, of_part, needed in zip(queries, keys, found, needs, strict=True):
            self._add(of_part, q_HCD, k_KRD, needed, None)
            so_far.append(self.seen)
        return out_THD, so_far

    @property
    def needs_queries(self) -> bool:
        """Whether `compress` reads every query of the prompt, not only the last ones."""
        return self._prompt.policy.needs.queries

    def observe(self, q_HTD: torch.Tensor, k_KSD: torch.Tensor) -> None:
        """`attend` for callers that have no use for its output."""
        needs = self._needs(q_HTD, k_KSD)
        found = statistics(q_HTD, k_KSD, scale=self._scale, needs=needs)
        self._add(found, q_HTD, k_KSD, needs, None)

    def compress(self, q_HTD: torch.Tensor, k_KTD: torch.Tensor, v_KTD: torch.Tensor) -> Compressed:
        """What the layer keeps, of the whole prompt's queries, keys and values."""
        prompt, started_s = self._prompt, time.monotonic()
        view = self.view(q_HTD, k_KTD, v_KTD)
        kept = policies.compress(view, prompt.policy, prompt.backend.merges)
        prompt.num_seen += 1
        prompt.num_evicted += kept.num_evicted
        prompt.num_merged += kept.num_merged
        if prompt.held is not None:
            prompt.held.add(kept)
        prompt.compress_s += time.monotonic() - started_s
        return kept

    def view(self, q_HTD: torch.Tensor, k_KTD: torch.Tensor, v_KTD: torch.Tensor) -> View:
        """What a policy may look at, when all rows have been seen."""
        return View(
            key_KTD=k_KTD,
            value_KTD=v_KTD,
            is_image_T=self._prompt.is_image_T,
            query_HTD=q_HTD,
            scale=self._scale,
            sums_KT=self.statistics.sums_KT,
            squares_KT=self.statistics.squares_KT,
            window_KT=self.statistics.window_KT,
            density_K=self._spread.density_K,
            entropy_K=self._spread.entropy_K,
            layer=self._index,
            num_layers=self._prompt.num_layers,
        )

    def _needs(self, q_HTD: torch.Tensor, k_KSD: torch.Tensor) -> Needs:
        """What is needed of these rows: of the window, those that are among them.

        Example: a window of 32 in a prompt of 100 begins at row 68. Of rows 40 to 79 it has the
        last 12; of rows 80 to 99 all 20.
        """
        needs = self._prompt.policy.needs
        if not needs.window:
            return needs
        num_rows = k_KSD.shape[1] - self._before
        num_tokens = self._prompt.is_image_T.shape[0]
        first = max(num_rows - q_HTD.shape[1], num_tokens - needs.window)
        in_window = max(0, num_rows - first)
        return replace(needs, window=in_window, density=needs.density and in_window > 0)

    def _add(
        self,
        found: Statistics,
        q_HTD: torch.Tensor,
        k_KSD: torch.Tensor,
        needs: Needs,
        mask_TT: torch.Tensor | None,
    ) -> None:
        before, is_image_T, started_s = self._before, self._prompt.is_image_T, time.monotonic()
        self.statistics = self.statistics.plus(found.of_rows(before))
        if found.dense_K is not None:
            group = q_HTD.shape[0] // k_KSD.shape[0]
            of_window = spread.counted(found.dense_K, k_KSD.shape[1], needs, group)
            self._spread = self._spread.plus(of_window)
            needs = replace(needs, density=False)
        is_image_S = is_image_T[: k_KSD.shape[1] - before]
        if before:
            is_image_S = torch.cat((is_image_T.new_zeros(before), is_image_S))
        more = spread.measure(
            q_HTD, k_KSD, scale=self._scale, is_image_T=is_image_S, needs=needs, mask_TT=mask_TT
        )
        self._spread = self._spread.plus(more)
        self._prompt.compress_s += time.monotonic() - started_s


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
    num_layers = max(num_layers, layer + 1)
    opened = PromptPolicy(recipe, is_image, num_layers, ledger=ledger, layer=layer)
    # No fast path here: they are made for the types a model runs in, not for float64.
    prompt = PromptLook(opened, is_image, num_layers=num_layers, backend=REFERENCE)
    one = prompt.layer(layer, query.shape[2] ** -0.5 if scale is None else scale)
    wide_query, wide_key, wide_value = query.double(), key.double(), value.double()
    one.observe(wide_query, wide_key)
    kept = one.compress(wide_query, wide_key, wide_value)
    return replace(
        kept,
        key=kept.key.to(key.dtype, copy=True),
        value=kept.value.to(value.dtype, copy=True),
    )


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
