"""`POST /tokenize`: what a chat would take, before it is sent to be answered.

Counts the tokens of the prompt and of its images, and what each cache policy would hold of it.
Knows the arithmetic of pages; the engine takes no part.
"""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from lookm import policy
from lookm.errors import PolicyError
from lookm.sizing import CacheShape
from lookm.types import CachePolicy
from server.health import Live, tenant
from server.openai import openapi
from server.openai.abort import abort_at, abort_on_disconnect
from server.openai.openapi import ErrorEnvelope, described
from server.openai.request import policies
from server.openai.request.body import read
from server.openai.request.translate import PreparedPrompt, Tenant, Translator
from server.openai.schemas.requests import TokenizeRequest
from server.openai.schemas.usage import Answer
from server.openai.tools.checks import shown
from server.services import Services

router = APIRouter(tags=["openai"], responses={"default": {"model": ErrorEnvelope}})


class Estimate(Answer):
    """What one policy would hold of the prompt: tokens are a mean over layers.

    An elastic one holds this where there is room for it, and at least what begins with `min_`.
    """

    policy: str
    kept_tokens: int
    bytes: int
    min_kept_tokens: int | None = None
    min_bytes: int | None = None


class Tokenized(Answer):
    """The answer. `images` has the tokens of each image, in order."""

    count: int
    max_model_len: int
    image_tokens: int
    images: list[int]
    kv_cache: list[Estimate]


@router.post(
    "/tokenize",
    openapi_extra=described(TokenizeRequest, openapi.tokenize_example("llava-demo")),
    responses={200: {"model": Tokenized}},
)
async def tokenize(request: Request, live: Live) -> Response:
    """Count a conversation with images, and estimate its cache under every preset."""
    body = await read(TokenizeRequest, request)
    counted = await abort_on_disconnect(request.receive, _count(live, body, tenant(request, live)))
    return Response(counted.to_json(), media_type="application/json")


def _tools(translator: Translator, body: TokenizeRequest) -> tuple[dict[str, Any], ...]:
    """Those of a request that passes its checks, as templates take them."""
    translator.check_chat(body.messages, body.tools or ())
    return shown(body.tools or ())


async def _count(live: Services, body: TokenizeRequest, asker: Tenant) -> Tokenized:
    translator = live.translator
    requested = translator.policy(body, asker)
    with live.gate.entered():
        tools = await translator.pools.text(lambda: _tools(translator, body))
        prompt = await abort_at(live.deadline_s(), translator.chat_prompt(body.messages, tools))
        estimated = await translator.pools.text(
            lambda: list(estimates(translator, requested, prompt))
        )
    images = translator.processor.tokens_per_image(prompt.images)
    return Tokenized(
        count=len(prompt.ids),
        max_model_len=translator.info.max_context_tokens,
        image_tokens=sum(images),
        images=list(images),
        kv_cache=estimated,
    )


def estimates(
    translator: Translator, requested: CachePolicy, prompt: PreparedPrompt
) -> Iterator[Estimate]:
    """The policy of the request, then every preset that `/v1/models` lists and the model takes."""
    listed = [policies.preset(method) for method in policy.PRESETS]
    shape = CacheShape.of(translator.info)
    for each in dict.fromkeys((requested, *listed)):
        try:
            rows_L = translator.kept(each, prompt).expected_L
        except PolicyError:
            if each == requested:
                raise
            continue
        estimate = Estimate(
            policy=policy.to_string(each),
            kept_tokens=len(prompt.ids) - round(len(prompt.ids) - rows_L.mean()),
            bytes=shape.bytes(rows_L),
        )
        if each.keep_min is not None:  # set, and so sent
            rows_L = translator.kept(policy.least(each), prompt).expected_L
            estimate.min_kept_tokens = len(prompt.ids) - round(len(prompt.ids) - rows_L.mean())
            estimate.min_bytes = shape.bytes(rows_L)
        yield estimate
