"""From what was asked to the engine's `Request`: policy, sampling, images and prompt.

Images are fetched and decoded by `server.media` and preprocessed in a bounded thread pool, never on
the event loop. Knows nothing about HTTP and nothing about answers.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

from lookm.errors import LookmError, PromptTooLongError, RequestError
from lookm.types import CachePolicy, ImageInput, ModelInfo, Request, Structure
from server.api_errors import ApiError, to_api_error
from server.metrics import Metrics
from server.openai.protocols import Media, Picture, Processor
from server.openai.request import policies
from server.openai.request.image_cache import ImageShelf, is_named
from server.openai.request.sampling import Room, check_options, sampling
from server.openai.request.schemas import (
    AssistantMessage,
    ChatRequest,
    CompletionRequest,
    Generation,
    ImagePart,
    Message,
    TokenizeRequest,
    ToolMessage,
)
from server.openai.tools.checks import check_turns, template_calls, tool_use
from server.openai.tools.template_support import Dialect, ToolSupport

T = TypeVar("T")


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
class Pools:
    """Threads for images and for text: a short question does not wait behind thirty photos."""

    images: Executor
    text: Executor


@dataclass(frozen=True, slots=True)
class Translator:
    """Everything a request needs before the engine sees it."""

    served_model: str
    info: ModelInfo
    default_policy: CachePolicy
    max_images: int
    processor: Processor
    media: Media
    pools: Pools
    metrics: Metrics
    shelf: ImageShelf
    tool_support: ToolSupport

    def policy(self, body: Generation | TokenizeRequest) -> CachePolicy:
        """The cache policy of a request. Raises `ApiError` or `PolicyError`."""
        in_model = policies.split_model(body.model, self.served_model)
        return policies.choose(body.kv_cache, in_model, self.default_policy)

    async def chat(self, body: ChatRequest, request_id: str) -> Request:
        """A chat request for the engine. Raises `ApiError` or `LookmError`."""
        policy = self.policy(body)
        check_options(body)
        use = tool_use(body, self.tool_support)
        prompt = await self.chat_prompt(body.messages, use.tools)
        body.messages.clear()  # data URLs may be 100 MB, and the answer may take minutes
        return self._request(body, request_id, policy, prompt, use.structure)

    async def completion(self, body: CompletionRequest, request_id: str) -> Request:
        """A text request for the engine. Raises `ApiError` or `LookmError`."""
        policy = self.policy(body)
        check_options(body)
        text = body.prompt if isinstance(body.prompt, str) else body.prompt[0]
        ids = await in_pool(self.pools.text, lambda: self.processor.text(text))
        return self._request(body, request_id, policy, Prompt(ids))

    async def chat_prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> Prompt:
        """Load the images, render the chat template."""
        check_turns(messages, self.tool_support)
        template = template_messages(messages, self.tool_support.dialect)
        refs = image_refs(messages)
        if len(refs) > self.max_images:
            message = f"The request has {len(refs)} images; {self.max_images} are allowed."
            raise ApiError("invalid_value", message, param="messages")
        images = await self._images(refs)
        ids = await in_pool(self.pools.text, lambda: self.processor.prompt(template, images, tools))
        return Prompt(ids, images)

    async def _images(self, refs: Sequence[ImageRef]) -> tuple[ImageInput, ...]:
        """One image per reference; a URL given twice is loaded once. One failure ends them all."""
        unique, places = distinct(refs)
        named = {r.param: self.shelf.named(r.url, r.param) for r in unique if is_named(r.url)}
        sent = [ref for ref in unique if ref.param not in named]
        params = [ref.param for ref in sent]
        pictures = await self.media.load_all([ref.url for ref in sent], params)
        inputs = await asyncio.gather(*map(self._preprocess, pictures, params))
        found = named | dict(zip(params, inputs, strict=True))
        return tuple(found[unique[place].param] for place in places)

    async def _preprocess(self, picture: Picture, param: str) -> ImageInput:
        if picture.fetch_s:
            self.metrics.observe("lookm_media_fetch_seconds", picture.fetch_s)
        self.metrics.observe("lookm_media_decode_seconds", picture.decode_s)
        if (known := self.shelf.get(picture.digest)) is not None:
            return known
        try:
            with self.metrics.time("lookm_media_preprocess_seconds"):
                image = await in_pool(
                    self.pools.images,
                    lambda: self.processor.image(picture.image, picture.digest),
                )
        except LookmError as error:
            raise to_api_error(error, param=param) from error
        self.shelf.put(image)
        return image

    def _request(
        self,
        body: Generation,
        request_id: str,
        policy: CachePolicy,
        prompt: Prompt,
        structure: Structure | None = None,
    ) -> Request:
        return Request(
            id=request_id,
            prompt_ids=prompt.ids,
            images=prompt.images,
            policy=policy,
            sampling=sampling(body, self._room(body, policy, prompt), structure),
        )

    def _room(self, body: Generation, policy: CachePolicy, prompt: Prompt) -> Room:
        """How long the answer may be: the rest of the context, and by default of the pool."""
        num_prompt, context = len(prompt.ids), self.info.max_context_tokens
        param = "prompt" if isinstance(body, CompletionRequest) else "messages"
        if not num_prompt:
            raise RequestError("The prompt is empty.", param=param)
        if num_prompt >= context:
            raise PromptTooLongError(
                f"The prompt has {num_prompt} tokens and the model's context is {context}: "
                "shorten it or send fewer images.",
                param=param,
            )
        pool_rows = self.info.capacity_bytes // self.info.kv_bytes_per_token
        pool_rows -= policies.most_kept(
            policy, prompt.ids, self.processor.image_token_id, self.info.num_layers
        )
        left = context - num_prompt
        return Room(num_prompt, left, max(1, min(left, pool_rows - self.info.page_tokens)))

    def kept_rows(self, policy: CachePolicy, prompt: Prompt) -> list[int]:
        """How many tokens of the prompt each layer would keep."""
        windows = self.info.windows or (None,) * self.info.num_layers
        return policies.kept_rows(policy, prompt.ids, self.processor.image_token_id, windows)


async def in_pool(pool: Executor, work: Callable[[], T]) -> T:
    """The result of `work`, which runs in a thread of the pool."""
    return await asyncio.get_running_loop().run_in_executor(pool, work)


def distinct(refs: Sequence[ImageRef]) -> tuple[list[ImageRef], list[int]]:
    """Each URL once, and for each reference which of them it is.

    Not a dict by URL: hashing 150 MB of them would hold up the event loop for 50 ms.
    """
    unique: list[ImageRef] = []
    places: list[int] = []
    alike: dict[tuple[int, str], list[int]] = {}
    for ref in refs:
        candidates = alike.setdefault((len(ref.url), ref.url[-64:]), [])
        place = next((i for i in candidates if unique[i].url == ref.url), len(unique))
        if place == len(unique):
            unique.append(ref)
            candidates.append(place)
        places.append(place)
    return unique, places


def image_refs(messages: Sequence[Message]) -> list[ImageRef]:
    """Every image of the conversation, in the order in which the model sees them."""
    return [
        ImageRef(f"messages[{m}].content[{p}].image_url.url", part.image_url.url)
        for m, message in enumerate(messages)
        if not isinstance(message.content, str)
        for p, part in enumerate(message.content or ())
        if isinstance(part, ImagePart)
    ]


def template_messages(messages: Sequence[Message], dialect: Dialect | None) -> list[dict[str, Any]]:
    """Messages as chat templates expect them; images are placeholders, order is kept.

    A tool's answer names its tool, which some templates show.
    """
    shown: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for message in messages:
        role = "system" if message.role == "developer" else message.role
        turn: dict[str, Any] = {"role": role, "content": _template_parts(message)}
        if dialect is not None and isinstance(message, AssistantMessage) and message.tool_calls:
            turn["content"] = dialect.content(_text(message))
            turn["tool_calls"] = list(template_calls(message.tool_calls, dialect))
            names |= {call.id: call.function.name for call in message.tool_calls}
        if dialect is not None and isinstance(message, ToolMessage):
            turn["content"] = dialect.content(_text(message))
            turn["tool_call_id"] = dialect.call_id(message.tool_call_id)
            turn["name"] = names[message.tool_call_id]
        shown.append(turn)
    return shown


def _template_parts(message: Message) -> list[dict[str, str]]:
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}]
    return [
        {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
        for part in message.content or ()
    ]


def _text(message: AssistantMessage | ToolMessage) -> str:
    return "".join(part.get("text", "") for part in _template_parts(message))
