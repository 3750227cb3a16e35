"""The engine's log-probabilities into OpenAI's two shapes."""

from collections.abc import Sequence
from itertools import accumulate

from lookm.types import TokenLogprob, TopLogprob
from server.openai.schemas.logprobs import ChatLogprobs, Entry, TextLogprobs, TopEntry


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    """One entry per token."""
    return ChatLogprobs(content=[_entry(each) for each in tokens], refusal=None)


def text_logprobs(tokens: Sequence[TokenLogprob], first_offset: int = 0) -> TextLogprobs:
    """Columns; `first_offset` is where in the answer the first token begins, in characters."""
    lengths = [len(each.token) for each in tokens]
    return TextLogprobs(
        tokens=[each.token for each in tokens],
        token_logprobs=[each.logprob for each in tokens],
        top_logprobs=[{top.token: top.logprob for top in each.top} for each in tokens],
        text_offset=list(accumulate(lengths[:-1], initial=first_offset)) if tokens else [],
    )


def _entry(each: TokenLogprob) -> Entry:
    top = [_top(one) for one in each.top]
    return Entry(token=each.token, logprob=each.logprob, bytes=list(each.bytes), top_logprobs=top)


def _top(one: TopLogprob) -> TopEntry:
    return TopEntry(token=one.token, logprob=one.logprob, bytes=list(one.bytes))
