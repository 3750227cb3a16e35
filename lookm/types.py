"""The values that cross every seam: a `Request` goes in, `TokenEvent`s come out.

Knows nothing about torch, HTTP or processes. Everything here is frozen, so both the API process and
the worker process may hold it, and msgspec can carry it between them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from lookm.kept import KeptPositions, View

Merge = Literal["none", "average", "pivot", "weighted"]
TextMode = Literal["protect", "prior", "none"]
Reuse = Literal["exact", "kept", "none"]
FinishReason = Literal["stop", "length", "abort", "error"]
StructureKind = Literal["json_object", "json_schema", "json_pieces", "regex"]

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How much of a prompt's KV cache is kept, and how it is chosen.

    `method` names a preset (`lookm.policy.PRESETS`). At most one of `keep` (fraction of the prompt,
    0 < keep <= 1) and `keep_tokens` (tokens, >= 1) is set; with neither, `full` keeps everything
    and every other method the paper's 20 %. With `keep_min` (0 < keep_min <= keep) it is elastic:
    an engine takes what there is room for, between the two (`lookm.elastic`); whoever has no pool
    takes `keep`.
    `recent` is the share of what is kept that goes to the last tokens of the prompt. `recent`,
    `merge` and `text` override the preset's own choice where they are not None.
    `lookm.policy.parse` reads the short form (`"look-m@0.2"`); `lookm.policy.resolve` validates,
    fills in `recent` and turns it into parts.
    """

    method: str = "full"
    keep: float | None = None
    keep_tokens: int | None = None
    recent: float | None = None
    merge: Merge | None = None
    text: TextMode | None = None
    keep_min: float | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """What a policy asks of the prompt's attention matrix A, per KV head and layer.

    `sums`: `sum_i A_ij`; `squares`: `sum_i A_ij^2`; `window` > 0: `sum_i A_ij` over the last
    `window` query rows only (query heads of a group summed), float32. With `after_images` the
    window is every row after the last image token, where there is one (`policy.PromptPolicy`).
    `density` and `entropy` say how widely A is spread (`lookm.attention.spread`). `queries`: the
    queries themselves.
    """

    sums: bool = False
    squares: bool = False
    window: int = 0
    after_images: bool = False
    density: bool = False
    entropy: bool = False
    queries: bool = False

    @property
    def stored(self) -> frozenset[str]:
        """The parts of a `Seen` that are worth keeping for prompts that begin alike.

        A window of the last rows is another one for each prompt; one after the images is the same,
        with more rows, until another image comes.
        """
        parts = {"sums": self.sums or self.squares, "squares": self.squares}
        parts |= {"window": self.after_images}
        parts |= dict.fromkeys(("dense", "visible"), self.after_images and self.density)
        return frozenset(name for name, is_wanted in parts.items() if is_wanted)

    @property
    def additive(self) -> bool:
        """Whether it can be had for a prompt whose first rows were computed before: sums add up,
        and a window needs its own rows only."""
        return not (self.entropy or self.queries)


@dataclass(frozen=True, slots=True)
class Structure:
    """A form the answer must have: a JSON object, JSON that fits a schema, pieces of JSON between
    markers, or a regex match.

    `source` is the JSON schema as JSON text, the regex (Rust syntax, matched as a whole), or for
    pieces what `lookm.grammar.source.Pieces` holds, as JSON. `param` is the request field to name
    where the form cannot be followed.
    """

    kind: StructureKind
    source: str = field(default="", repr=False)
    param: str = "response_format"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen and when the answer ends. `lookm.sampling.check` has the ranges.

    `temperature` 0 is greedy, over the logits as penalties, bias and structure leave them;
    `top_k` 0, `top_p` 1 and `min_p` 0 are off. `repetition_penalty` looks at the prompt and the
    answer, the other two at the answer only. `logit_bias` is (token id, bias) pairs.

    An answer ends at the model's end token (unless `ignore_eos`), a `stop_token_ids` token or a
    `stop` string, none of which before `min_tokens` tokens, or after `max_tokens`.
    `logprobs`: None is off; n asks for each token's log-probability and the n likeliest tokens'.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    structure: Structure | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ImageInput:
    """One image, preprocessed for the model by `lookm.models.processor`.

    `digest` names the content (the key of the vision-feature cache). `tensors` are the model's own
    keyword arguments for this one image, for example `{"pixel_values": float32 [1, 3, H, W]}`.
    `num_tokens` is how many prompt tokens the image takes; `view` says what each stands for.
    """

    digest: str
    tensors: Mapping[str, Array] = field(repr=False)
    num_tokens: int
    view: View | None = field(default=None, repr=False)

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One prompt to be answered. `prompt_ids` has its image placeholders already expanded; `policy`
    may be a short form such as `"look-m@0.2"`.

    `reuse` "exact" computes only what no earlier prompt with the same beginning and the same `salt`
    has computed, for the same answer; "none" computes all of it. "kept" goes on from what earlier
    turns of a conversation under the same policy kept: what they dropped is gone, and only what is
    new is compressed. Where there is nothing to go on from it is "exact".

    Of those that wait, and of long prompts, the one of the lowest `priority` comes first; when
    pages are short the one of the highest goes.

    `positions`: its last event says which tokens of the prompt were kept.

    Of elastic requests those of one `group` that is not empty (one request's `n` choices) keep the
    same fraction. `num_coming` others are on their way to the engine: they leave room for them.
    """

    id: str
    prompt_ids: tuple[int, ...] = field(repr=False)
    images: tuple[ImageInput, ...] = field(default=(), repr=False)
    policy: CachePolicy | str = CachePolicy()
    sampling: Sampling = Sampling()
    reuse: Reuse = "exact"
    salt: str = field(default="", repr=False)
    priority: int = 0
    positions: bool = False
    group: str = ""
    num_coming: int = 0


@dataclass(frozen=True, slots=True)
class CacheReport:
    """What was really kept of one prompt; tokens are means over layers, bytes are held pages.

    `kept_tokens`, `merged_tokens` and `evicted_tokens` are means over the layers, rounded.
    `merged_tokens` is the part of `evicted_tokens` that was merged into kept ones.
    `cached_tokens` of the prompt were not computed again (`Request.reuse`).
    `compressed` is False where the policy kept everything (also for a text-only prompt under a
    modality-aware policy). `policy` is as it was carried out: of an elastic one, which is then
    `elastic`, `keep` is the fraction that was taken.
    """

    policy: CachePolicy
    prompt_tokens: int
    image_tokens: int
    kept_tokens: int
    evicted_tokens: int
    merged_tokens: int
    bytes: int
    full_bytes: int
    compressed: bool
    cached_tokens: int = 0
    elastic: CachePolicy | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds one request spent in each stage inside the engine."""

    queue_s: float = 0.0
    encode_s: float = 0.0
    prefill_s: float = 0.0
    compress_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One likely token. `bytes` is what it adds to the text, `token` the same as far as UTF-8."""

    token_id: int
    token: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The generated token's log-probability, and the likeliest tokens', most likely first.

    Of the model's own distribution: the softmax of its logits before temperature, penalties, bias,
    structure and filters. The generated token is in `top` only if it is among the likeliest.
    """

    token_id: int
    token: str
    bytes: bytes
    logprob: float
    top: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step of one request. The first event follows the prefill; the last has a `finish`.

    `token_id` is None on events without a new token (abort, error). `text` is what may be shown
    now: it can lag behind the tokens (stop strings, incomplete UTF-8) and is complete at the end.
    `cache` is set on the first event and on the last; `timing`, `error` and, where they were asked
    for, `positions` only on the last.
    `logprobs`, where asked for, comes with its token, also while the text is held back; the token
    that ends an answer has none, for it adds no text. `stop_reason` says which stop string or which
    of the `stop_token_ids` ended the answer. `refused`: the request can never be served, which was
    found out after it was added; the name of the `LookmError` that `error` and `param` belong to.
    """

    request_id: str
    token_id: int | None
    text: str
    num_generated: int
    finish: FinishReason | None = None
    cache: CacheReport | None = None
    timing: Timing | None = None
    error: str | None = None
    logprobs: TokenLogprob | None = None
    stop_reason: str | int | None = None
    refused: str | None = None
    param: str | None = None
    positions: KeptPositions | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot after a step. Names ending in `_total` and `_s` only ever grow.

    `used_bytes` are pages held now; `full_bytes` is what the same sequences would hold at full
    cache. `decode_s` is time spent in steps that decoded, for tokens per second;
    `last_step_seconds` is how long the step took.
    """

    capacity_bytes: int
    used_bytes: int
    full_bytes: int
    running: int
    waiting: int
    prompt_tokens_total: int = 0
    image_tokens_total: int = 0
    generated_tokens_total: int = 0
    decode_tokens_total: int = 0
    decode_s: float = 0.0
    preemptions_total: int = 0
    image_cache_queries_total: int = 0
    image_cache_hits_total: int = 0
    vision_encode_s: float = 0.0
    parked_bytes: int = 0
    parked_conversations: int = 0
    parked_hit_tokens_total: int = 0
    prompt_store_bytes: int = 0
    prompt_store_query_tokens_total: int = 0
    prompt_store_hit_tokens_total: int = 0
    prompt_store_evictions_total: int = 0
    prompt_store_load_s: float = 0.0
    prompt_store_save_s: float = 0.0
    last_step_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the rest of the system may know about the loaded model.

    `windows`: for each layer how many tokens it sees, None for all; empty where all layers see all.
    `causal`: the tokens of a prompt with images see only those before them.
    `kv_cache_dtype`: how keys and values are stored, "auto" for `dtype`.
    """

    name: str
    max_context_tokens: int
    kv_bytes_per_token: int
    page_tokens: int
    capacity_bytes: int
    num_layers: int
    dtype: str
    device: str
    windows: tuple[int | None, ...] = ()
    causal: bool = True
    kv_cache_dtype: str = "auto"
