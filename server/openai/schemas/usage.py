"""`usage` of an answer: OpenAI's, and `usage.kv_cache`, which is ours.

Fields that are not set are not sent.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from lookm.types import CacheReport, TokenEvent


class Answer(BaseModel):
    """Base of all answers."""

    def to_json(self) -> str:
        """The fields that were set."""
        return self.model_dump_json(exclude_unset=True)


class PatchGrid(Answer):
    """Patches of an image: the one at a row and a column is prompt token
    `first_token + row * row_stride + column`. All of them cover `box`: left, top, right, bottom in
    pixels of the image as it was sent."""

    first_token: int
    rows: int
    columns: int
    row_stride: int
    box: tuple[float, float, float, float]


class ImagePositions(Answer):
    """An image as it was sent, in pixels, and which tokens of the prompt it is."""

    width: int
    height: int
    first_token: int
    num_tokens: int
    grids: list[PatchGrid]


class TextPositions(Answer):
    """Text between images: what each token shows."""

    first_token: int
    tokens: list[str]


class KeptPositionsUsage(Answer):
    """Which tokens of the prompt are held: `kept` and `merged` are base64 of zlib of bits
    `[layers, KV heads, tokens]`, each row filled up to whole bytes, the first of eight
    tokens the highest bit. Nothing is known of the first `num_unknown` tokens.
    """

    encoding: Literal["bitmap+zlib"]
    num_tokens: int
    num_layers: int
    num_kv_heads: int
    num_unknown: int
    kept: str
    merged: str | None
    text: list[TextPositions]
    images: list[ImagePositions]


class KeepRangeUsage(Answer):
    """An elastic `keep`, as it was asked for."""

    min: float
    max: float


class KvCacheUsage(Answer):
    """What was really kept of the prompt; tokens are means over the layers.

    With `n`, what each choice holds: the cache of one, not the sum.
    """

    method: Annotated[str, Field(description="the preset that was applied")]
    keep: Annotated[
        float | None,
        Field(description="the fraction of the prompt asked for; of a range, what was taken"),
    ]
    keep_tokens: Annotated[int | None, Field(description="or the tokens asked for")]
    prompt_tokens: Annotated[int, Field(description="tokens of the prompt, text and images")]
    image_tokens: Annotated[int, Field(description="those of them that are images'")]
    kept_tokens: Annotated[int, Field(description="tokens whose keys and values are cached")]
    merged_tokens: Annotated[
        int, Field(description="evicted tokens that live on in kept ones; the rest were dropped")
    ]
    bytes: Annotated[int, Field(description="what the prompt's cache takes in the KV pool")]
    full_bytes: Annotated[int, Field(description="what it would take at `full`")]
    compressed: Annotated[bool, Field(description="false where everything was kept")]
    keep_range: Annotated[
        KeepRangeUsage | None, Field(description="what was asked for, where `keep` is elastic")
    ] = None
    positions: Annotated[
        KeptPositionsUsage | None,
        Field(description="which tokens those are, where `kv_cache.positions` asked for it"),
    ] = None


class PromptTokensDetails(Answer):
    """OpenAI's split of the prompt."""

    cached_tokens: int
    image_tokens: int
    tokens_per_image: Annotated[
        list[int] | None, Field(description="those of each image, in their order")
    ] = None


class TimingsUsage(Answer):
    """Seconds of one request by stage, each apart from the others; with `n`, of the choice that
    ended last."""

    queue: Annotated[float, Field(description="waiting for a place in the engine")]
    media: Annotated[float, Field(description="fetching and decoding images, making the prompt")]
    vision: Annotated[float, Field(description="the vision tower; none for images it remembers")]
    prefill: Annotated[float, Field(description="steps with its prompt in them, without the look")]
    look: Annotated[float, Field(description="scoring, evicting and merging the prompt's cache")]
    decode: Annotated[float, Field(description="steps with its answer in them")]
    total: Annotated[float, Field(description="from its arrival to its last token")]


class Usage(Answer):
    """What the request took: its prompt once, the answers of all its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    kv_cache: KvCacheUsage
    timings: Annotated[
        TimingsUsage | None,
        Field(description="where `usage_options.timings` asked for them"),
    ] = None


def usage_of(
    ends: Sequence[TokenEvent],
    positions: KeptPositionsUsage | None = None,
    timings: TimingsUsage | None = None,
    tokens_per_image: Sequence[int] = (),
) -> Usage:
    """The usage that the terminal events of a request's choices tell: of the one whose `positions`
    these are, what is kept."""
    report = next((end for end in ends if end.positions is not None), ends[0]).cache
    assert report is not None, "an answered request has a cache report"
    num_generated = sum(last.num_generated for last in ends)
    usage = Usage(
        prompt_tokens=report.prompt_tokens,
        completion_tokens=num_generated,
        total_tokens=report.prompt_tokens + num_generated,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=report.cached_tokens, image_tokens=report.image_tokens
        ),
        kv_cache=_kv_cache(report, positions),
    )
    if tokens_per_image:  # set, and so sent
        usage.prompt_tokens_details.tokens_per_image = list(tokens_per_image)
    if timings is not None:
        usage.timings = timings
    return usage


def _kv_cache(report: CacheReport, positions: KeptPositionsUsage | None) -> KvCacheUsage:
    usage = KvCacheUsage(
        method=report.policy.method,
        keep=report.policy.keep,
        keep_tokens=report.policy.keep_tokens,
        prompt_tokens=report.prompt_tokens,
        image_tokens=report.image_tokens,
        kept_tokens=report.kept_tokens,
        merged_tokens=report.merged_tokens,
        bytes=report.bytes,
        full_bytes=report.full_bytes,
        compressed=report.compressed,
    )
    if (asked := report.elastic) is not None:  # set, and so sent
        assert asked.keep_min is not None
        assert asked.keep is not None
        usage.keep_range = KeepRangeUsage(min=asked.keep_min, max=asked.keep)
    if positions is not None:
        usage.positions = positions
    return usage
