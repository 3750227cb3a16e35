"""Where the capacity experiment runs: on a server of its own, or on one that is there.

Knows how to start a server with a small pool; the experiment is `capacity`'s.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from server import plan
from server.bench.capacity.elastic import stretch, with_elastic
from server.bench.capacity.report import capacity_report
from server.bench.capacity.search import Experiment, Point, explore
from server.bench.load.client import Target, first_model
from server.bench.load.polling import capacity_bytes
from server.bench.serving import lookm_command, serving


@dataclass(frozen=True, slots=True)
class Place:
    """`url` of a running server, or None for a server of our own with `kv_cache_memory`."""

    url: str | None
    api_key: str | None = field(default=None, repr=False)
    kv_cache_memory: str = "64MiB"


def measured(
    experiment: Experiment,
    place: Place,
    command: str,
    elastic: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Run it and report, for an elastic range as well where there is one.

    Raises `ValueError`, and `RuntimeError` where no server starts.
    """
    model = experiment.workload.model
    shape = None if place.url is not None else plan.read_shape(model)
    with _server(experiment, place) as target:
        served = first_model(target) if place.url is None or not model else model
        experiment = replace(experiment, workload=replace(experiment.workload, model=served))
        pool = capacity_bytes(target)
        answer_tokens = experiment.workload.answer_tokens.high

        def expect(keep: float, prompt_tokens: int) -> int | None:
            if shape is None or pool is None:
                return None
            each = plan.Conversation(prompt_tokens, answer_tokens)
            return plan.fits(shape, pool, each, [keep])[0].num_conversations

        points = []
        for point in explore(target, experiment, expect):
            points.append(point)
            print(_progress(point), file=sys.stderr, flush=True)
        stretched = elastic and stretch(target, experiment, elastic, points)
    return with_elastic(capacity_report(points, experiment, command, pool), stretched or None)


@contextmanager
def _server(experiment: Experiment, place: Place) -> Iterator[Target]:
    if place.url is not None:
        yield Target(place.url, place.api_key)
        return
    bound = str(experiment.max_conversations)
    bounds = ("--max-running", bound, "--max-waiting", bound, "--log-level", "warning")
    pool = ("--kv-cache-memory", place.kv_cache_memory)
    with serving(lookm_command(experiment.workload.model, *pool, *bounds)) as url:
        yield Target(url)


def _progress(point: Point) -> str:
    limit = ", ".join(point.limit) or "the bound of the search"
    return f"{point.policy}: {point.conversations} ({len(point.trials)} trials; next: {limit})"
