"""Log-probabilities of the model's own distribution: read from raw logits, in OpenAI's shape."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lookm.types import TokenLogprob, TopLogprob

LEAST = -9999.0  # stands for "impossible": JSON has no -inf


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A row's next token, and where asked for its log-probability and the likeliest tokens'."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choices(
    logits_BV: torch.Tensor, tokens: list[int], num_top: list[int | None]
) -> list[SampledToken]:
    """Each row's token as a `SampledToken`; `num_top`: how many of the likeliest, None is off."""
    sampled = [SampledToken(token) for token in tokens]
    rows = [row for row, count in enumerate(num_top) if count is not None]
    if not rows:
        return sampled
    logprob_BV = logits_BV[rows].log_softmax(-1).clamp_min(LEAST)
    chosen = torch.tensor([tokens[row] for row in rows], device=logits_BV.device)
    chosen_B = logprob_BV.gather(-1, chosen[:, None])[:, 0].tolist()
    max_top = min(max(num_top[row] or 0 for row in rows), logits_BV.shape[-1])
    values, ids = (each.tolist() for each in logprob_BV.topk(max_top))
    for i, row in enumerate(rows):
        pairs = zip(ids[i][: num_top[row]], values[i], strict=False)
        sampled[row] = SampledToken(tokens[row], chosen_B[i], tuple(pairs))
    return sampled


def describe(choice: SampledToken, bytes_of: Callable[[int], bytes]) -> TokenLogprob:
    """A choice whose log-probability was asked for, with its tokens as text."""
    assert choice.logprob is not None
    top = tuple(TopLogprob(*_text(token, bytes_of), logprob) for token, logprob in choice.top)
    return TokenLogprob(*_text(choice.token, bytes_of), choice.logprob, top)


def _text(token: int, bytes_of: Callable[[int], bytes]) -> tuple[int, str, bytes]:
    raw = bytes_of(token)
    return token, raw.decode(errors="replace"), raw
