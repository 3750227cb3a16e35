"""Log-probabilities in OpenAI's two shapes: by token for chats, in columns for text completions."""

from pydantic import BaseModel


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
