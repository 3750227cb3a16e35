"""Log-probabilities in OpenAI's two shapes: by token for chats, in columns for text completions."""

from collections.abc import Sequence
from itertools import accumulate

from pydantic import BaseModel

from lookm.types import TokenLogprob, TopLogprob


class TopEntry(BaseModel):
    """One likely token."""

    token: str
    logprob: float
    bytes: list[int]


class Entry(TopEntry):
    """The token that was generated, and the likeliest at its place."""

    top_logprobs: list[TopEntry]


class ChatLogprobs(BaseModel):
    """`choices[0].logprobs` of a chat answer or chunk."""

    content: list[Entry]
    refusal: None


class TextLogprobs(BaseModel):
    """`choices[0].logprobs` of a text completion; the lists run side by side."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


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
