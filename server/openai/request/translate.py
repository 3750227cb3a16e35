"""From a request's body to the engine's `Request`: policy, sampling, images and prompt.

Knows the order in which a request is checked and prepared: pictures are `pictures`', the chat's
turns `template`'s. Knows nothing about HTTP and nothing about answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lookm.errors import PromptTooLongError, RequestError
from lookm.models.generation import GenerationDefaults
from lookm.policy import least
from lookm.sizing import CacheShape, KeptRows
from lookm.types import CachePolicy, ImageInput, ModelInfo, Request, Reuse, Structure
from server.keys.limits import NO_LIMITS, Limits
from server.openai.protocols import ChatProcessor
from server.openai.reasoning import Thinking
from server.openai.request import policies
from server.openai.request.media_parts import media_parts
from server.openai.request.model_names import ModelNames
from server.openai.request.pictures import PictureLoader, images_of
from server.openai.request.pools import Pools
from server.openai.request.sampling import OPENAI, Room, check_options, sampling
from server.openai.request.strict_schema import check_strict
from server.openai.request.template import template_messages
from server.openai.request.text_limit import TextLimit, check_schema
from server.openai.schemas.requests import (
    ChatRequest,
    CompletionRequest,
    Generation,
    Message,
    TokenizeRequest,
)
from server.openai.schemas.tools import Tool
from server.openai.tools.checks import ToolUse, check_tools, check_turns, tool_use
from server.openai.tools.template_support import ToolSupport


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks: whose prompts share what they compute, and what the API key may ask for."""

    salt: str = ""
    limits: Limits = NO_LIMITS


ANYBODY = Tenant()


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """What the model will see."""

    ids: tuple[int, ...]
    images: tuple[ImageInput, ...] = ()


@dataclass(frozen=True, slots=True)
class Translator:
    """Everything a request needs before the engine sees it."""

    names: ModelNames
    info: ModelInfo
    default_policy: CachePolicy
    default_reuse: Reuse
    processor: ChatProcessor
    pictures: PictureLoader
    pools: Pools
    tool_support: ToolSupport
    thinking: Thinking | None
    presets: list[str]  # those that the model takes
    defaults: GenerationDefaults = OPENAI  # of sampling
    positions: bool = True  # whether requests may ask for them

    def policy(self, body: Generation | TokenizeRequest, tenant: Tenant = ANYBODY) -> CachePolicy:
        """The cache policy of a request. Raises `ApiError` or `PolicyError`."""
        in_model = self.names.policy(body.model)
        default = tenant.limits.default_policy or self.default_policy
        chosen = policies.choose(body.kv_cache, in_model, default)
        policies.check_allowed(chosen, tenant.limits, "kv_cache" if in_model is None else "model")
        return chosen

    @property
    def text_limit(self) -> TextLimit:
        """How much text a prompt may have, to be known before anything is made of it."""
        return TextLimit(self.info.max_context_tokens, self.processor.max_token_characters)

    async def chat(self, body: ChatRequest, request_id: str, tenant: Tenant = ANYBODY) -> Request:
        """A chat request for the engine. Raises `ApiError` or `LookmError`.

        Nothing that one `tenant`'s prompts computed is reused for another's.
        """
        policy = self.policy(body, tenant)
        check_options(body)
        use = await self.pools.text(lambda: self._checked(body))
        prompt = await self.chat_prompt(body.messages, use.tools)
        body.messages.clear()  # data URLs may be 100 MB, and the answer may take minutes
        request = self._request(body, request_id, policy, prompt, use.structure)
        return replace(request, salt=salt(body, tenant))

    async def completion(
        self, body: CompletionRequest, request_id: str, tenant: Tenant = ANYBODY
    ) -> Request:
        """A text request for the engine. Raises `ApiError` or `LookmError`."""
        policy = self.policy(body, tenant)
        check_options(body)
        text = body.prompt if isinstance(body.prompt, str) else body.prompt[0]
        self.text_limit.check_prompt(text)
        ids = await self.pools.text(lambda: self.processor.text(text))
        request = self._request(body, request_id, policy, PreparedPrompt(ids))
        return replace(request, salt=salt(body, tenant))

    async def chat_prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> PreparedPrompt:
        """Load the pictures, render the chat template: of a checked chat."""
        pictures = await self.pictures.load(media_parts(messages))
        images = tuple(images_of(pictures))

        def rendered() -> tuple[int, ...]:
            template = template_messages(messages, self.tool_support.dialect, pictures)
            return self.processor.prompt(template, images, tools)

        return PreparedPrompt(await self.pools.text(rendered), images)

    def check_chat(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        """Raises `ApiError` or `PromptTooLongError`. Takes a while, where there are many parts."""
        self.text_limit.check_chat(messages, tools)
        check_tools(tools, self.tool_support)
        check_turns(messages, self.tool_support)

    def _checked(self, body: ChatRequest) -> ToolUse:
        check_schema(body.response_format)
        self.check_chat(body.messages, body.tools or ())
        use = tool_use(body, self.tool_support)
        check_strict(body)
        return use

    def _request(
        self,
        body: Generation,
        request_id: str,
        policy: CachePolicy,
        prompt: PreparedPrompt,
        structure: Structure | None = None,
    ) -> Request:
        return Request(
            id=request_id,
            prompt_ids=prompt.ids,
            images=prompt.images,
            policy=policy,
            sampling=sampling(body, self._room(body, policy, prompt), structure, self.defaults),
            reuse=policies.reuse(body.kv_cache, self.default_reuse),
            priority=body.priority or 0,
            positions=policies.positions(body.kv_cache, allowed=self.positions),
        )

    def _room(self, body: Generation, policy: CachePolicy, prompt: PreparedPrompt) -> Room:
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
        left, rows_L = context - num_prompt, self.kept(least(policy), prompt).bound_L
        fits = CacheShape.of(self.info).room(rows_L, self.info.capacity_bytes, left)
        if not fits:
            raise PromptTooLongError(
                f"The prompt has {num_prompt} tokens; what is kept of them fills the server's KV "
                "cache: shorten it, send fewer images or keep less.",
                param=param,
            )
        return Room(num_prompt, left, fits)

    def kept(self, policy: CachePolicy, prompt: PreparedPrompt) -> KeptRows:
        """How many rows of the prompt each layer would keep. Raises `PolicyError`."""
        windows = CacheShape.of(self.info).windows_L
        return policies.kept(policy, prompt.ids, self.processor.image_token_id, windows)


def salt(body: Generation, tenant: Tenant) -> str:
    """What must be equal, besides the prompt itself, for its beginning to be reused."""
    return "\0".join((tenant.salt, body.cache_salt or "", body.prompt_cache_key or ""))
