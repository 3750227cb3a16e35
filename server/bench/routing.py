"""`python -m server.bench.routing`: which replica should get a request? A simulation, seconds.

A trace of conversations: documents by Zipf's law, turns by a geometric one, arrivals and pauses
exponential. Each replica has a prompt store, the least recently used part of which goes first, and
prefills one prompt after the other; what its store knows costs `known_cost` of what is new. Left
out: decoding, batching, what a key or a salt keeps apart. The numbers compare ways to route; they
predict no server's latency. Knows nothing of the engine.
"""

import argparse
import bisect
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from statistics import quantiles

RING_POINTS = 128  # of a replica


@dataclass(frozen=True, slots=True)
class Trace:
    """What is asked. Tokens of documents are exponential around their mean, at least a tenth."""

    conversations: int = 6000
    per_s: float = 12.0
    documents: int = 2000
    zipf: float = 1.0
    document_tokens: int = 3500  # six images of LLaVA 1.5
    turns: float = 4.0
    pause_s: float = 30.0
    turn_tokens: int = 180  # a question and the answer before it
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Who answers. A store of 96,000 tokens is 47 GiB at 512 KiB a token (a 7B model)."""

    replicas: int = 8
    store_tokens: int = 96_000
    prefill_per_s: float = 30_000  # of a 7B model at look-m@0.2 on an H100: README's results
    known_cost: float = 0.2
    spill_s: float = 0.5  # of waiting, from which a conversation goes elsewhere


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: a turn of a conversation about a document."""

    at_s: float
    conversation: int
    document: int
    document_tokens: int
    history_tokens: int

    @property
    def tokens(self) -> int:
        """Of the whole prompt."""
        return self.document_tokens + self.history_tokens


@dataclass(slots=True)
class Replica:
    """One server: its store, and until when it is busy."""

    fleet: Fleet
    busy_until_s: float = 0.0
    spent_s: float = 0.0
    _held: OrderedDict[tuple[str, int], int] = field(default_factory=OrderedDict)
    _held_tokens: int = 0

    def waiting_s(self, now_s: float) -> float:
        """How long a request that arrives now waits."""
        return max(0.0, self.busy_until_s - now_s)

    def serve(self, asked: Asked) -> tuple[int, float]:
        """Tokens that were known, and seconds until the first new one."""
        known = self._known(asked)
        new = asked.tokens - known
        cost_s = (new + self.fleet.known_cost * known) / self.fleet.prefill_per_s
        self.busy_until_s = asked.at_s + self.waiting_s(asked.at_s) + cost_s
        self.spent_s += cost_s
        self._keep(("document", asked.document), asked.document_tokens)
        self._keep(("conversation", asked.conversation), asked.history_tokens)
        return known, self.busy_until_s - asked.at_s

    def _known(self, asked: Asked) -> int:
        """A history is known only after the document that it follows."""
        document = self._held.get(("document", asked.document), 0)
        history = self._held.get(("conversation", asked.conversation), 0) if document else 0
        return document + history

    def _keep(self, name: tuple[str, int], tokens: int) -> None:
        self._held_tokens += tokens - self._held.pop(name, 0)
        self._held[name] = tokens
        while self._held_tokens > self.fleet.store_tokens:
            self._held_tokens -= self._held.popitem(last=False)[1]


class Ring:
    """Consistent hashing: a replica more or less moves its own part only."""

    def __init__(self, replicas: int) -> None:
        points = itertools.product(range(replicas), range(RING_POINTS))
        self._points = sorted((_hash(f"{replica} {n}"), replica) for replica, n in points)

    def home(self, name: str) -> int:
        """The replica of a name."""
        at = bisect.bisect(self._points, (_hash(name), -1))
        return self._points[at % len(self._points)][1]


Route = Callable[[Asked, Sequence[Replica]], int]


def routes(fleet: Fleet, seed: int = 0) -> Mapping[str, Route]:
    """The ways to choose, by name."""
    draw, ring = random.Random(seed), Ring(fleet.replicas)

    def by_session(asked: Asked, _: Sequence[Replica]) -> int:
        return ring.home(f"conversation {asked.conversation}")

    def by_document(asked: Asked, _: Sequence[Replica]) -> int:
        return ring.home(f"document {asked.document}")

    def least_loaded(asked: Asked, replicas: Sequence[Replica]) -> int:
        return min(range(len(replicas)), key=lambda n: replicas[n].waiting_s(asked.at_s))

    def spilling(home: Route) -> Route:
        def choose(asked: Asked, replicas: Sequence[Replica]) -> int:
            at = home(asked, replicas)
            over = replicas[at].waiting_s(asked.at_s) > fleet.spill_s
            return least_loaded(asked, replicas) if over else at

        return choose

    return {
        "random": lambda _, replicas: draw.randrange(len(replicas)),
        "least loaded": least_loaded,
        "hash of the session": by_session,
        "hash of the session, spilling": spilling(by_session),
        "hash of the first images": by_document,
        "hash of the first images, spilling": spilling(by_document),
    }


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way to route: how much was known, how long first tokens took, how even the load was."""

    route: str
    known_ratio: float
    first_token_p50_s: float
    first_token_p95_s: float
    busiest_to_mean: float


def requests(trace: Trace) -> list[Asked]:
    """All requests, by when they arrive."""
    draw = random.Random(trace.seed)
    weights = [1 / rank**trace.zipf for rank in range(1, trace.documents + 1)]
    sizes = [
        max(trace.document_tokens // 10, round(draw.expovariate(1 / trace.document_tokens)))
        for _ in weights
    ]
    chosen = draw.choices(range(trace.documents), weights, k=trace.conversations)
    asked, begun_s = [], 0.0
    for conversation, document in enumerate(chosen):
        begun_s += draw.expovariate(trace.per_s)
        at_s, history = begun_s, trace.turn_tokens // 3
        while True:
            asked.append(Asked(at_s, conversation, document, sizes[document], history))
            if draw.random() < 1 / trace.turns:
                break
            at_s += draw.expovariate(1 / trace.pause_s)
            history += trace.turn_tokens
    return sorted(asked, key=lambda each: each.at_s)


def simulate(name: str, route: Route, asked: Sequence[Asked], fleet: Fleet) -> Outcome:
    """All requests, one way to route them."""
    replicas = [Replica(fleet) for _ in range(fleet.replicas)]
    known, first_s = 0, []
    for each in asked:
        tokens, seconds = replicas[route(each, replicas)].serve(each)
        known += tokens
        first_s.append(seconds)
    cuts = quantiles(first_s, n=20)
    spent = [replica.spent_s for replica in replicas]
    mean_s = sum(spent) / len(spent)
    total = sum(each.tokens for each in asked)
    return Outcome(name, known / total, cuts[9], cuts[18], max(spent) / mean_s)


def compare(trace: Trace, fleet: Fleet) -> list[Outcome]:
    """Every way to route, on the same trace."""
    asked = requests(trace)
    return [simulate(name, route, asked, fleet) for name, route in routes(fleet).items()]


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """As Markdown."""
    yield "| route by | prompt tokens known | first token p50 | p95 | busiest replica to mean |"
    yield "|---|---|---|---|---|"
    for one in outcomes:
        times = f"{one.first_token_p50_s:.2f} s | {one.first_token_p95_s:.2f} s"
        yield f"| {one.route} | {one.known_ratio:.0%} | {times} | {one.busiest_to_mean:.2f}x |"


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())


def main() -> None:
    """Options are the fields of `Trace` and `Fleet`."""
    parser = argparse.ArgumentParser(prog="python -m server.bench.routing")
    for of in (Trace(), Fleet()):
        for name in type(of).__slots__:
            value = getattr(of, name)
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    trace = Trace(**{name: given[name] for name in Trace.__slots__})
    fleet = Fleet(**{name: given[name] for name in Fleet.__slots__})
    print("\n".join(table(compare(trace, fleet))))


if __name__ == "__main__":
    main()
