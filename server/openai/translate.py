"""From what was asked to the engine's `Request`: policy, sampling, images and prompt.

Images are fetched and decoded by `server.media` and preprocessed in a bounded thread pool, never on
the event loop. Knows nothing about HTTP and nothing about answers.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from lookm.errors import LookmError, PromptTooLongError
from lookm.types import CachePolicy, ImageInput, Request, Sampling
from server.errors import ApiError, to_api_error
from server.metrics import Metrics
from server.openai import policies
from server.openai.schemas import ChatRequest, CompletionRequest, Generation, ImagePart, Message
from server.openai.seams import Media, Picture, Processor

T = TypeVar("T")

COLDEST = 1e-5


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image stands in the request, and where its bytes are."""

    param: str
    url: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model will see."""

    ids: tuple[int, ...]
    images: tuple[ImageInput, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    max_context_tokens: int
    max_images: int


@dataclass(frozen=True, slots=True)
class Translator:
    """Everything a request needs before the engine sees it."""

    served_model: str
    default_policy: CachePolicy
    limits: Limits
    processor: Processor
    media: Media
    pool: Executor
    metrics: Metrics

    def policy(self, body: Generation) -> CachePolicy:
        """The cache policy of a request. Raises `ApiError` or `PolicyError`."""
        in_model = policies.split_model(body.model, self.served_model)
        return policies.choose(body.kv_cache, in_model, self.default_policy)

    async def chat(self, body: ChatRequest, request_id: str) -> Request:
        """A chat request for the engine. Raises `ApiError` or `LookmError`."""
        policy = self.policy(body)
        check_options(body)
        prompt = await self.chat_prompt(body.messages)
        return self._request(body, request_id, policy, prompt)

    async def completion(self, body: CompletionRequest, request_id: str) -> Request:
        """A text request for the engine. Raises `ApiError` or `LookmError`."""
        policy = self.policy(body)
        check_options(body)
        ids = await self._in_pool(lambda: self.processor.text(body.prompt))
        return self._request(body, request_id, policy, Prompt(ids))

    async def chat_prompt(self, messages: Sequence[Message]) -> Prompt:
        """Load the images, render the chat template."""
        refs = image_refs(messages)
        if len(refs) > self.limits.max_images:
            message = f"The request has {len(refs)} images; {self.limits.max_images} are allowed."
            raise ApiError("invalid_value", message, param="messages")
        images = await self._images(refs)
        template = [template_message(message) for message in messages]
        return Prompt(await self._in_pool(lambda: self.processor.prompt(template, images)), images)

    async def _images(self, refs: Sequence[ImageRef]) -> tuple[ImageInput, ...]:
        """One image per reference; a URL given twice is loaded once. One failure ends them all."""
        first = {ref.url: ref for ref in reversed(refs)}
        params = [ref.param for ref in first.values()]
        pictures = await self.media.load_all(list(first), params)
        inputs = await asyncio.gather(*map(self._preprocess, pictures, params))
        by_url = dict(zip(first, inputs, strict=True))
        return tuple(by_url[ref.url] for ref in refs)

    async def _preprocess(self, picture: Picture, param: str) -> ImageInput:
        if picture.fetch_s:
            self.metrics.observe("lookm_media_fetch_seconds", picture.fetch_s)
        self.metrics.observe("lookm_media_decode_seconds", picture.decode_s)
        try:
            with self.metrics.time("lookm_media_preprocess_seconds"):
                return await self._in_pool(
                    lambda: self.processor.image(picture.image, picture.digest)
                )
        except LookmError as error:
            raise to_api_error(error, param=param) from error

    def _request(
        self, body: Generation, request_id: str, policy: CachePolicy, prompt: Prompt
    ) -> Request:
        return Request(
            id=request_id,
            prompt_ids=prompt.ids,
            images=prompt.images,
            policy=policy,
            sampling=sampling(body, len(prompt.ids), self.limits.max_context_tokens),
        )

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)


def check_options(body: Generation) -> None:
    """Fields that are valid alone but not together."""
    if body.stream_options is not None and not body.stream:
        message = "'stream_options' is only allowed with 'stream': true."
        raise ApiError("invalid_value", message, param="stream_options")
    newer = getattr(body, "max_completion_tokens", None)
    if None not in (newer, body.max_tokens) and newer != body.max_tokens:
        message = "'max_tokens' and 'max_completion_tokens' differ: give one of them."
        raise ApiError("invalid_value", message, param="max_completion_tokens")


def sampling(body: Generation, prompt_tokens: int, max_context_tokens: int) -> Sampling:
    """OpenAI's defaults: temperature 1, top_p 1, and as many tokens as fit."""
    room = max_context_tokens - prompt_tokens
    if room < 1:
        raise PromptTooLongError(
            f"The prompt has {prompt_tokens} tokens and the model's context is "
            f"{max_context_tokens}: shorten the messages or send fewer images."
        )
    newer = getattr(body, "max_completion_tokens", None)
    max_tokens = body.max_tokens or newer or room
    if max_tokens > room:
        raise PromptTooLongError(
            f"The prompt has {prompt_tokens} tokens and {max_tokens} more were asked for, but the "
            f"model's context is {max_context_tokens}: ask for at most {room}.",
            param="max_tokens" if body.max_tokens else "max_completion_tokens",
        )
    stop = body.stop or ()
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature(body.temperature),
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        seed=body.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        ignore_eos=bool(body.ignore_eos),
    )


def temperature(asked: float | None) -> float:
    """OpenAI's default is 1. Below `COLDEST` logits overflow, and sampling is greedy anyway."""
    if asked is None:
        return 1.0
    return asked if asked >= COLDEST else 0.0


def image_refs(messages: Sequence[Message]) -> list[ImageRef]:
    """Every image of the conversation, in the order in which the model sees them."""
    return [
        ImageRef(f"messages[{m}].content[{p}].image_url.url", part.image_url.url)
        for m, message in enumerate(messages)
        if not isinstance(message.content, str)
        for p, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]


def template_message(message: Message) -> dict[str, Any]:
    """A message as chat templates expect it; images are placeholders, order is kept."""
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return {"role": role, "content": [{"type": "text", "text": message.content}]}
    parts = [
        {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
        for part in message.content
    ]
    return {"role": role, "content": parts}
