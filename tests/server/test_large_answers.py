"""Large answers are written in parts, byte for byte what they were, while others are served."""

import asyncio
from typing import Any

import pytest

from lookm.types import CachePolicy, CacheReport, TokenEvent, TokenLogprob, TopLogprob
from server.loop_lag import watch_lag
from server.openai.response import whole
from server.openai.response.chat_chunks import ChatChunks
from server.openai.response.text_chunks import TextChunks
from server.openai.response.whole import parts, whole_json
from server.openai.response.writers import AnswerHeader, Collected, CompletionWriter

REPORT = CacheReport(CachePolicy(), 3, 0, 3, 0, 0, 96, 96, False)


def collected(num_tokens: int, num_top: int, text: str = "a") -> Collected:
    top = tuple(TopLogprob(n, f'"{n}', b"a", -float(n)) for n in range(num_top))
    each = TokenLogprob(1, '"content":[]', b"\xff", -0.5, top)
    last = TokenEvent("a", 1, "", num_tokens, finish="stop", cache=REPORT)
    return Collected(text, (each,) * num_tokens, last)


def writer(kind: Any, *, logprobs: bool = True) -> CompletionWriter:
    return CompletionWriter(kind(AnswerHeader("a", "m", "f", logprobs=logprobs)))


@pytest.mark.parametrize("kind", [ChatChunks, TextChunks])
@pytest.mark.parametrize("num_tokens", [0, 1, 32, 33, 100])
@pytest.mark.parametrize("logprobs", [True, False])
def test_parts_are_the_whole(kind: Any, num_tokens: int, logprobs: bool) -> None:
    tricky = 'é"choices":[] "logprobs":{"content":[]}\n\\'
    choices = [collected(num_tokens, 3, tricky), collected(1, 0), collected(0, 0, "")]
    written = b"".join(parts(writer(kind, logprobs=logprobs), choices))
    assert written.decode() == writer(kind, logprobs=logprobs).whole(choices).to_json()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [ChatChunks, TextChunks])
async def test_a_large_answer_does_not_hold_up_the_event_loop(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lags: list[float] = []
    watch = asyncio.create_task(watch_lag(lags.append))
    monkeypatch.setattr("server.loop_lag.LOOK_EVERY_S", 0.005)
    await asyncio.sleep(0)
    written = await whole_json(writer(kind), [collected(500, 20)] * 8)
    watch.cancel()
    assert sum(map(len, written)) > 10**6
    assert lags
    assert sorted(lags)[len(lags) // 2] < 0.1


@pytest.mark.anyio
async def test_a_small_answer_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole.asyncio, "to_thread", None)
    assert await whole_json(writer(ChatChunks), [collected(3, 2)])
