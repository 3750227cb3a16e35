"""What a `Sampling` may ask for. Every refusal names the field and says what is allowed."""

import math
from collections.abc import Iterable

from lookm.errors import RequestError
from lookm.types import Sampling

MAX_TOP_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 128
MAX_LOGIT_BIASES = 1024
MAX_BIAS = 100.0

RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "top_k": (0, math.inf),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "max_tokens": (1, math.inf),
    "min_tokens": (0, math.inf),
    "seed": (-(2**63), 2**63 - 1),
    "logprobs": (0, MAX_TOP_LOGPROBS),
}


def check(sampling: Sampling, num_vocabulary: int) -> None:
    """Raise `RequestError` for what no model with `num_vocabulary` logits can do."""
    for name, (low, high) in RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            allowed = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise RequestError(f"{name} must be {allowed}, not {value}", param=name)
    penalty = sampling.repetition_penalty
    if not (penalty > 0 and math.isfinite(penalty)):
        raise RequestError(
            f"repetition_penalty must be above 0, not {penalty}", param="repetition_penalty"
        )
    if sampling.min_tokens > sampling.max_tokens:
        raise RequestError(
            f"min_tokens ({sampling.min_tokens}) must be at most max_tokens "
            f"({sampling.max_tokens})",
            param="min_tokens",
        )
    if sampling.structure is not None and sampling.ignore_eos:
        raise RequestError(
            "a structured answer ends where its structure does: leave out ignore_eos",
            param="ignore_eos",
        )
    _check_stops(sampling)
    _check_bias(sampling)
    _check_ids("stop_token_ids", sampling.stop_token_ids, num_vocabulary)
    _check_ids("logit_bias", (token for token, _ in sampling.logit_bias), num_vocabulary)


def _check_stops(sampling: Sampling) -> None:
    _check_count("stop", len(sampling.stop), MAX_STOPS)
    _check_count("stop_token_ids", len(sampling.stop_token_ids), MAX_STOP_TOKEN_IDS)
    if not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in sampling.stop):
        raise RequestError(
            f"each stop string must have from 1 to {MAX_STOP_CHARACTERS} characters", param="stop"
        )


def _check_bias(sampling: Sampling) -> None:
    _check_count("logit_bias", len(sampling.logit_bias), MAX_LOGIT_BIASES)
    if len(dict(sampling.logit_bias)) < len(sampling.logit_bias):
        raise RequestError("logit_bias has a token id twice", param="logit_bias")
    for token, bias in sampling.logit_bias:
        if not -MAX_BIAS <= bias <= MAX_BIAS:
            raise RequestError(
                f"the logit_bias of token {token} must be from -100 to 100, not {bias}",
                param="logit_bias",
            )


def _check_count(name: str, count: int, max_count: int) -> None:
    if count > max_count:
        raise RequestError(
            f"{name} has {count} entries; at most {max_count} are allowed", param=name
        )


def _check_ids(name: str, ids: Iterable[int], num_vocabulary: int) -> None:
    for token in ids:
        if not 0 <= token < num_vocabulary:
            raise RequestError(
                f"{name} has token id {token}; this model has ids from 0 to {num_vocabulary - 1}",
                param=name,
            )
