"""What is sent: requests drawn from a seed, the same ones on every machine.

Request *i* of a seed is always the same, however many are sent, at whatever rate and under whatever
policies: its sizes and words come from one random stream, its policy from another. So two runs that
differ only in policies ask the same. The colours of pictures come from a third stream, which also
depends on `nonce`: servers keep what they computed of pictures, and a second run must not find the
first one's. Knows the chat request of OpenAI; knows nothing about clocks or connections.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from lookm.bench.noise_image import noise_image

DEFAULT_POLICY = "default"  # sends no policy: the server's own choice
WORDS = (
    "the", "of", "and", "to", "in", "is", "you", "that", "it", "was", "for", "on", "are", "as",
    "with", "they", "at", "be", "this", "have", "from", "one", "had", "by", "word", "but", "not",
    "what", "all", "were", "we", "when", "your", "can", "said", "there", "use", "each", "which",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spread:
    """A whole number for each request, and how it is written.

    `64`: always; `16-128`: each equally likely; `~64`: exponential with this mean, at least 1 and
    at most four times the mean.
    """

    low: int
    high: int
    mean: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the form above. Raises `ValueError`."""
        try:
            if text.startswith("~"):
                mean = int(text[1:])
                low, high, drawn = 1, 4 * mean, mean
            else:
                first, dash, last = text.partition("-")
                low, drawn = int(first), None
                high = int(last) if dash else low
        except ValueError:
            message = f"cannot read {text!r}: write 64, 16-128 or ~64 (exponential, by its mean)"
            raise ValueError(message) from None
        if not 0 <= low <= high:
            raise ValueError(f"{text!r}: a range goes from a smaller to a larger number, from 0")
        return cls(low, high, drawn)

    def draw(self, rng: np.random.Generator) -> int:
        """One number."""
        if self.mean is not None:
            return int(np.clip(round(rng.exponential(self.mean)), self.low, self.high))
        return int(rng.integers(self.low, self.high, endpoint=True))

    def __str__(self) -> str:
        if self.mean is not None:
            return f"~{self.mean:g}"
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True, slots=True)
class Workload:
    """What every request is drawn from. `policies` are short forms and their weights.

    `kv_cache_field` False says a policy in the model's name (`llava-demo:look-m@0.2`) instead of
    in a field. `ignore_eos` asks for the whole answer length; it is an extension of this server,
    vLLM and others, so it can be left out.
    """

    model: str
    images: Spread = Spread(2, 2)
    image_side_px: int = 336
    words: Spread = Spread(40, 40)
    answer_tokens: Spread = Spread(64, 64)
    policies: tuple[tuple[str, float], ...] = ((DEFAULT_POLICY, 1.0),)
    kv_cache_field: bool = True
    ignore_eos: bool = True
    seed: int = 0
    nonce: int = 0

    def described(self) -> dict[str, Any]:
        """For reports: what makes two workloads the same, without model and policies."""
        return {
            "images": str(self.images),
            "image_side_px": self.image_side_px,
            "words": str(self.words),
            "answer_tokens": str(self.answer_tokens),
            "ignore_eos": self.ignore_eos,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, ready to be sent: `body` is the JSON text."""

    index: int
    policy: str
    answer_tokens: int
    body: bytes


def parse_policies(texts: str) -> tuple[tuple[str, float], ...]:
    """`full=0.3,look-m@0.2=0.7`, or with spaces; no weight means 1. Raises `ValueError`."""
    mix = []
    for text in texts.replace(",", " ").split():
        name, _, weight = text.partition("=")
        try:
            share = float(weight or 1)
        except ValueError:
            raise ValueError(f"{text!r}: write POLICY=WEIGHT, such as look-m@0.2=0.7") from None
        if not name or not share > 0:
            raise ValueError(f"{text!r}: a policy needs a name and a weight above 0")
        mix.append((name, share))
    if len({name for name, _ in mix}) < len(mix):
        raise ValueError("a policy is named twice")
    return tuple(mix) or ((DEFAULT_POLICY, 1.0),)


def make_ask(workload: Workload, index: int) -> Ask:
    """Request `index`: images first, then words, greedy, streamed, with usage at the end."""
    rng = np.random.default_rng((workload.seed, index, 0))
    num_images, num_words = workload.images.draw(rng), workload.words.draw(rng)
    answer_tokens = max(1, workload.answer_tokens.draw(rng))
    policy = _pick(workload, np.random.default_rng((workload.seed, index, 1)))
    colours = np.random.default_rng((workload.seed, index, 3, workload.nonce))
    images = [noise_url(colours, workload.image_side_px) for _ in range(num_images)]
    text = some_words(rng, num_words)
    content = [
        *({"type": "image_url", "image_url": {"url": url}} for url in images),
        {"type": "text", "text": text},
    ]
    in_field = workload.kv_cache_field or policy == DEFAULT_POLICY
    body = chat_body(
        workload.model if in_field else f"{workload.model}:{policy}",
        [{"role": "user", "content": content}],
        answer_tokens,
        policy if in_field else DEFAULT_POLICY,
        ignore_eos=workload.ignore_eos,
    )
    return Ask(index, policy, answer_tokens, body)


def chat_body(
    model: str,
    messages: Sequence[dict[str, Any]],
    answer_tokens: int,
    policy: str,
    *,
    ignore_eos: bool = False,
) -> bytes:
    """JSON text of a chat request: greedy, streamed, usage at the end, the policy in a field.

    `look-m@0.2+kept` says what is reused as well.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": list(messages),
        "max_tokens": answer_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if ignore_eos:
        body["ignore_eos"] = True
    name, _, reuse = policy.partition("+")
    if reuse:
        method, _, keep = name.partition("@")
        fraction = {"keep": float(keep)} if keep else {}
        body["kv_cache"] = {"method": method, "reuse": reuse, **fraction}
    elif policy != DEFAULT_POLICY:
        body["kv_cache"] = policy
    return json.dumps(body).encode()


def some_words(rng: np.random.Generator, num_words: int) -> str:
    """Words drawn evenly, with spaces."""
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), num_words))


def noise_url(rng: np.random.Generator, side_px: int) -> str:
    """The same as a PNG data URI."""
    buffer = io.BytesIO()
    noise_image(rng, side_px).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _pick(workload: Workload, rng: np.random.Generator) -> str:
    weights = np.array([weight for _, weight in workload.policies])
    return workload.policies[int(rng.choice(len(weights), p=weights / weights.sum()))][0]
