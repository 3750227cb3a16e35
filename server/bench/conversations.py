"""Chats about documents that go on for many turns: `lookm bench conversations`, for any server.

Each user has a document of pictures and asks one question after another, with time to think between
them; a turn carries everything said before. The report is by turn: the time to the first token, and
how much of the prompt the server had computed before (its own word, in OpenAI's usage).

    {"kind": "conversations", "command", "commit", "hardware", "versions", "measured_at",
     "url", "model", "users", "turns", "images", "image_side_px", "think_s", "answer_tokens",
     "slo_ttft_s", "documents_first",
     "served": {policy: users of whom every turn but the first began in time},
     "policies": {policy: [TURN]}}
    TURN: {"turn", "asked", "failed", "ttft_p50_s", "ttft_max_s", "over_first",
           "prompt_tokens", "cached_share": null where the server says nothing}

A policy may say what it reuses, to a server that has such a field: `look-m@0.2+kept`. Knows
OpenAI's chat request; knows nothing about engines.
"""

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import numpy as np

from lookm.bench.provenance import provenance
from lookm.bench.records import Json
from server.bench.load.client import Sample, Target, ask
from server.bench.load.workload import Ask, chat_body, noise_url, some_words
from server.bench.tables import seconds, text_table


@dataclass(frozen=True, slots=True)
class Chats:
    """What the users do. `nonce` makes pictures that no earlier run has shown.

    `documents_first`: nobody asks a second time before all have their first answer.
    """

    model: str
    users: int = 1
    turns: int = 4
    images: int = 4
    image_side_px: int = 336
    words: int = 20
    answer_tokens: int = 32
    think_s: float = 0.0
    slo_ttft_s: float = 2.0
    documents_first: bool = False
    shared_document: bool = False
    seed: int = 0
    nonce: int = 0

    def described(self) -> Json:
        """For reports."""
        left_out = ("model", "words", "shared_document", "seed", "nonce")
        return {name: value for name, value in asdict(self).items() if name not in left_out}


async def chat(chats: Chats, target: Target, policy: str) -> list[list[Sample]]:
    """Every user's turns under a policy, all users together."""
    zero_s = time.monotonic()
    begun = asyncio.Barrier(chats.users)
    async with target.connect() as http:
        users = [
            _user(chats, http, target, policy, user, zero_s, begun) for user in range(chats.users)
        ]
        return list(await asyncio.gather(*users))


async def _user(
    chats: Chats,
    http: httpx.AsyncClient,
    target: Target,
    policy: str,
    user: int,
    zero_s: float,
    begun: asyncio.Barrier,
) -> list[Sample]:
    document = 0 if chats.shared_document else user
    colours = np.random.default_rng((chats.seed, document, chats.nonce))
    rng = np.random.default_rng((chats.seed, user, 1))
    urls = [noise_url(colours, chats.image_side_px) for _ in range(chats.images)]
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages: list[dict[str, Any]] = []
    samples = []
    for turn in range(chats.turns):
        if turn and chats.think_s:
            await asyncio.sleep(float(rng.exponential(chats.think_s)))
        question = some_words(rng, chats.words)
        content = [*(images if not turn else []), {"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        body = chat_body(chats.model, messages, chats.answer_tokens, policy)
        request = Ask(turn, policy, chats.answer_tokens, body)
        sample = await ask(
            http,
            request,
            due_s=time.monotonic() - zero_s,
            zero_s=zero_s,
            timeout_s=target.timeout_s,
        )
        samples.append(sample)
        if chats.documents_first and not turn:
            await begun.wait()
        if sample.error is not None:
            break
        messages.append({"role": "assistant", "content": "".join(sample.pieces)})
    return samples


def conversations_report(
    chats: Chats, target: Target, found: dict[str, list[list[Sample]]], command: str
) -> Json:
    """The schema above."""
    return {
        "kind": "conversations",
        **provenance(command),
        "url": target.url,
        "model": chats.model,
        **chats.described(),
        "served": {policy: _served(chats, users) for policy, users in found.items()},
        "policies": {policy: list(_turns(users)) for policy, users in found.items()},
    }


def _served(chats: Chats, users: Sequence[Sequence[Sample]]) -> int:
    """Users who had all their turns, each but the first begun in time."""
    return sum(
        len(user) == chats.turns
        and all(sample.error is None for sample in user)
        and all(sample.ttft_s <= chats.slo_ttft_s for sample in user[1:])
        for user in users
    )


def _turns(users: Sequence[Sequence[Sample]]) -> Iterator[Json]:
    first: float | None = None
    for turn in range(max(map(len, users))):
        samples = [user[turn] for user in users if turn < len(user)]
        done = [sample for sample in samples if sample.error is None]
        waits = [sample.ttft_s for sample in done]
        median = statistics.median(waits) if waits else None
        first = median if turn == 0 else first
        known = [(s.cached_tokens, s.prompt_tokens) for s in done if s.cached_tokens is not None]
        yield {
            "turn": turn + 1,
            "asked": len(samples),
            "failed": len(samples) - len(done),
            "ttft_p50_s": median,
            "ttft_max_s": max(waits, default=None),
            "over_first": median / first if median is not None and first else None,
            "prompt_tokens": max((s.prompt_tokens or 0 for s in done), default=0),
            "cached_share": (
                sum(cached for cached, _ in known) / max(1, sum(total or 0 for _, total in known))
                if known
                else None
            ),
        }


HEADER = ("policy", "turn", "TTFT p50", "max", "of turn 1", "prompt tokens", "known", "failed")


def lines(report: Json) -> Iterator[str]:
    """The report as text."""
    yield (
        f"{report['model']} at {report['url']}: {report['users']} users, {report['turns']} turns, "
        f"{report['images']} images of {report['image_side_px']} px"
    )
    for policy, served in report["served"].items():
        yield f"{policy}: {served} of {report['users']} users within {report['slo_ttft_s']:g} s"
    yield ""
    rows = [
        (
            policy,
            str(each["turn"]),
            seconds(each["ttft_p50_s"]),
            seconds(each["ttft_max_s"]),
            "-" if each["over_first"] is None else f"{each['over_first']:.3f}",
            str(each["prompt_tokens"]),
            "-" if each["cached_share"] is None else f"{each['cached_share']:.0%}",
            f"{each['failed']} of {each['asked']}",
        )
        for policy, turns in report["policies"].items()
        for each in turns
    ]
    yield from text_table([HEADER, *rows])
