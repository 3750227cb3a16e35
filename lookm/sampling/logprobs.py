"""Log-probabilities of the model's own distribution: read from raw logits, told as OpenAI does."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lookm.types import TokenLogprob, TopLogprob

LEAST = -9999.0  # stands for "impossible": JSON has no -inf


@dataclass(frozen=True, slots=True)
class Choice:
    """A row's next token, and where asked for its log-probability and the likeliest tokens'."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choices(logits_BV: torch.Tensor, tokens: list[int], asked: list[int | None]) -> list[Choice]:
    """Each row's token as a `Choice`; `asked` is how many of the likeliest to tell, None is off."""
    told = [Choice(token) for token in tokens]
    rows = [row for row, count in enumerate(asked) if count is not None]
    if not rows:
        return told
    logprob_BV = logits_BV[rows].log_softmax(-1).clamp_min(LEAST)
    chosen = torch.tensor([tokens[row] for row in rows], device=logits_BV.device)
    chosen_B = logprob_BV.gather(-1, chosen[:, None])[:, 0].tolist()
    most = min(max(asked[row] or 0 for row in rows), logits_BV.shape[-1])
    values, ids = (each.tolist() for each in logprob_BV.topk(most))
    for i, row in enumerate(rows):
        pairs = zip(ids[i][: asked[row]], values[i], strict=False)
        told[row] = Choice(tokens[row], chosen_B[i], tuple(pairs))
    return told


def describe(choice: Choice, bytes_of: Callable[[int], bytes]) -> TokenLogprob:
    """A choice whose log-probability was asked for, with its tokens as text."""
    assert choice.logprob is not None
    top = tuple(TopLogprob(*_text(token, bytes_of), logprob) for token, logprob in choice.top)
    return TokenLogprob(*_text(choice.token, bytes_of), choice.logprob, top)


def _text(token: int, bytes_of: Callable[[int], bytes]) -> tuple[int, str, bytes]:
    raw = bytes_of(token)
    return token, raw.decode(errors="replace"), raw
