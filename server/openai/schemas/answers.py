"""What a client gets back, in OpenAI's shape, and `usage.kv_cache`, which is ours.

Fields that are not set are not sent, so that a chunk carries `usage` where it is wanted.
Knows the shapes and how events become them; nothing about HTTP.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from lookm.types import CacheReport, TokenEvent
from server.openai.schemas.logprobs import ChatLogprobs, TextLogprobs

Finish = Literal["stop", "length", "tool_calls"]


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


class KvCacheUsage(Answer):
    """What was really kept of the prompt; tokens are means over the layers.

    With `n`, what each choice holds: the cache of one, not the sum.
    """

    method: Annotated[str, Field(description="the preset that was applied")]
    keep: Annotated[float | None, Field(description="the fraction of the prompt asked for")]
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


class AnswerFunction(Answer):
    """Which tool is called; `arguments` is the text of a JSON object. In chunks, parts of it."""

    name: str | None = None
    arguments: str


class AnswerCall(Answer):
    """A call that the client should make. `index` is there in chunks, the rest in the first
    chunk of a call."""

    index: int | None = None
    id: str | None = None
    type: Literal["function"] | None = None
    function: AnswerFunction


class AssistantAnswer(Answer):
    """The message of a chat answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: Annotated[
        str | None, Field(description="what the model thought before it answered")
    ] = None
    tool_calls: list[AnswerCall] | None = None


class Choice(Answer):
    """One choice of a chat answer."""

    index: int
    message: AssistantAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(Answer):
    """The answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


class Delta(Answer):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[AnswerCall] | None = None


class ChunkChoice(Answer):
    """One choice of a chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(Answer):
    """One event of a streamed chat answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class TextChoice(Answer):
    """One choice of a text completion, whole or in a chunk."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish | None


class TextCompletion(Answer):
    """The answer of `POST /v1/completions`, and each event of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | None = None


class Accepts(Answer):
    """What a request may bring."""

    text: bool
    images: bool
    max_images: Annotated[int, Field(description="in one request")]
    fewest_image_tokens: Annotated[
        int, Field(description="no image takes fewer: less as `max_tokens_per_image` is refused")
    ]
    video: bool
    files: Annotated[bool, Field(description="PDFs; each page counts as an image")]
    tools: Annotated[bool, Field(description="whether the model's chat template shows them")]


class Model(Answer):
    """The model, alone or with a cache policy, or an alias of either."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: Annotated[str, Field(description="what an alias stands for; else the same as `id`")]
    max_model_len: Annotated[int, Field(description="context: prompt and answer, in tokens")]
    accepts: Accepts
    kv_cache: Annotated[str, Field(description="the policy of a request that names none itself")]
    policies: Annotated[list[str], Field(description="the presets that requests may name")]


class ModelList(Answer):
    """The answer of `GET /v1/models`."""

    object: Literal["list"]
    data: list[Model]


def finish_of(last: TokenEvent, *, called: bool = False) -> Finish:
    """OpenAI's word for how a choice ended. Aborts and errors never get this far."""
    assert last.finish in ("stop", "length"), last.finish
    return "tool_calls" if called and last.finish == "stop" else last.finish


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
    if positions is not None:  # set, and so sent
        usage.positions = positions
    return usage


def kept_ratio(report: CacheReport) -> str:
    """The value of the `x-lookm-kept-ratio` header."""
    return f"{report.kept_tokens / max(1, report.prompt_tokens):.4f}"
