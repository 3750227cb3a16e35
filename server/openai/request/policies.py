"""Which cache policy a request asks for: in its body, in its model name, or the server's default.

Knows how policies are written; `lookm.policy` decides what is valid.
"""

import contextlib
from collections.abc import Sequence

import torch

from lookm import policy
from lookm.errors import PolicyError
from lookm.sizing import CacheShape, KeptRows, kept_rows
from lookm.types import CachePolicy, ModelInfo, Reuse
from server.api_errors import ApiError
from server.keys.limits import Limits
from server.openai.schemas.kv_cache import KeepRange, KvCache

VARIANT_KEEP = 0.2  # what `/v1/models` lists; any other fraction may be sent
SAMPLE_TOKENS = 1024  # of a prompt that presets are tried on


def read(given: str | KvCache) -> CachePolicy:
    """A valid policy. Raises `PolicyError`."""
    if isinstance(given, str):
        return completed(policy.parse(given))
    assert given.method is not None, "see `choose`"
    keep = given.keep
    return completed(
        CachePolicy(
            method=given.method,
            keep=keep.max if isinstance(keep, KeepRange) else keep,
            keep_min=keep.min if isinstance(keep, KeepRange) else None,
            keep_tokens=given.keep_tokens,
            recent=given.recent,
            merge=given.merge,
            text=given.text,
        )
    )


def completed(given: CachePolicy) -> CachePolicy:
    """`given` with its defaults filled in, if it can be done. Raises `PolicyError`."""
    return policy.resolve(given).policy


def reuse(given: str | KvCache | None, default: Reuse) -> Reuse:
    """Whether the request takes over what earlier prompts computed."""
    return default if given is None or isinstance(given, str) else given.reuse or default


def positions(given: str | KvCache | None, *, allowed: bool) -> bool:
    """Whether it is to be told which tokens are kept. Raises `ApiError` where that may not be."""
    asked = given is not None and not isinstance(given, str) and bool(given.positions)
    if asked and not allowed:
        message = "This server does not tell which tokens are kept (it runs with --no-positions)."
        raise ApiError("unsupported_parameter", message, param="kv_cache.positions")
    return asked


def choose(
    given: str | KvCache | None, in_model: CachePolicy | None, default: CachePolicy
) -> CachePolicy:
    """The policy of one request. Raises `ApiError` where body and model name disagree."""
    in_body = None if given is None or _says_no_policy(given) else read(given)
    if in_body is not None and in_model is not None and in_body != in_model:
        message = "'kv_cache' and the policy in 'model' differ: give one of them."
        raise ApiError("invalid_kv_cache", message, param="kv_cache")
    return in_body or in_model or default


def check_allowed(asked: CachePolicy, limits: Limits, param: str) -> None:
    """Raises `ApiError` (403) where the API key may not ask for so much, or in that way."""
    if not limits.allows(asked):
        message = (
            f"This API key may not ask for {policy.to_string(asked)!r}: it may for "
            f"{limits.allowed()}, each with that budget or less."
        )
        raise ApiError("policy_not_allowed", message, param=param)


def _says_no_policy(given: str | KvCache) -> bool:
    """Whether the policy itself is left open, also by nulls or by nothing, which OpenAI's API takes
    as absent. Raises `ApiError` where half of one is given.
    """
    if isinstance(given, str) or given.method is not None:
        return False
    if not given.model_dump(exclude_none=True).keys() <= {"reuse", "positions"}:
        message = "Missing required parameter: 'kv_cache.method'."
        raise ApiError("missing_required_parameter", message, param="kv_cache.method")
    return True


def kept(
    requested: CachePolicy, ids: Sequence[int], image_token_id: int, windows: Sequence[int | None]
) -> KeptRows:
    """How many rows of a prompt each layer keeps. Raises `PolicyError`."""
    return kept_rows(policy.resolve(requested), torch.tensor(ids) == image_token_id, windows)


def preset(method: str) -> CachePolicy:
    """The policy under which `/v1/models` lists a method."""
    return read(method if method == "full" else f"{method}@{VARIANT_KEEP}")


def taken(info: ModelInfo) -> list[str]:
    """The presets that the model takes for every prompt, whatever images are in it."""
    is_image_T = torch.zeros(SAMPLE_TOKENS, dtype=torch.bool)
    is_image_T[SAMPLE_TOKENS // 4 : SAMPLE_TOKENS // 2] = True
    windows = CacheShape.of(info).windows_L
    found = []
    for method in policy.PRESETS:
        with contextlib.suppress(PolicyError):
            kept_rows(policy.resolve(preset(method)), is_image_T, windows, causal=info.causal)
            found.append(method)
    return found
