"""Batches drawn ahead of training: in a thread beside a CPU, in processes beside a GPU.

Knows how to make a `Batcher` anywhere from a few plain values. Knows nothing of models.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from lookm.demo.scenes import scene
from lookm.demo.training.batches import Batch, Batcher
from lookm.demo.training.build import wrap


@dataclass(frozen=True, slots=True)
class Source:
    """What batches are drawn from: the first `scenes` training scenes of a seed."""

    tokenizer: Path
    seed: int
    tokens: int
    scenes: int


@functools.cache
def open_batcher(source: Source) -> Batcher:
    """The batcher of a source; each process makes it once."""
    drawn = [scene("train", source.seed, number) for number in range(source.scenes)]
    tokenizer = wrap(Tokenizer.from_file(str(source.tokenizer)))
    return Batcher(tokenizer, drawn, source.seed, source.tokens)


def draw(source: Source, step: int, num_images: int) -> Batch:
    """The batch of a step."""
    return open_batcher(source).draw(step, num_images)


def batches(
    source: Source, first_step: int, num_images: Callable[[int], int], processes: int
) -> Generator[Batch, None, None]:
    """Batches from a step on, for ever; `num_images` is asked when a batch is begun."""
    pool: Executor = ThreadPoolExecutor(1)
    if processes:
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(processes, mp_context=spawn)
    ahead: deque[Future[Batch]] = deque()
    step = first_step
    with pool:
        try:
            while True:
                while len(ahead) < 2 * max(1, processes):
                    ahead.append(pool.submit(draw, source, step, num_images(step)))
                    step += 1
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
