"""This engine beside itself and beside plain `generate()`: what compression costs and what it buys.

    python -m server.bench.own                   # a random LLaVA of 226 M parameters, bfloat16

Prefill time with a policy over prefill without, decode speed and KV bytes at 16 concurrent
requests, and one request alone against transformers' `generate()` on the same weights. Runs
alternate, and the best of several counts, because machines are shared. No HTTP: servers are
compared by `peers`.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lookm.config import EngineConfig
from lookm.engine import Engine
from lookm.models.loading import load_model
from lookm.models.synthetic import SHAPES, write
from lookm.policy import parse
from lookm.types import ImageInput, Request, Sampling
from server.bench.load import Workload, noise_image

POLICIES = ("full", "look-m@0.2")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of images and words, ready for the engine and for `generate()`."""

    ids: tuple[int, ...]
    images: tuple[ImageInput, ...]

    def requests(self, count: int, policy: str, max_tokens: int) -> list[Request]:
        sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
        return [
            Request(f"{policy}-{i}", self.ids, self.images, parse(policy), sampling)
            for i in range(count)
        ]


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of the prefill (one request) and of a decode step (median), and KV bytes held."""

    prefill_s: float
    step_s: float
    kv_bytes: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model_dir or Path(scratch) / "mid"
        if options.model_dir is None:
            write(SHAPES["mid"], folder)
        _compare(str(folder), options.repeats, options.concurrent)
    return 0


def measure(engine: Engine, requests: Sequence[Request]) -> Run:
    """Prefill all requests, then time the steps in which every one of them decodes."""
    for request in requests:
        engine.add(request)
    started_s = time.perf_counter()
    seen = {event.request_id for event in engine.step()}
    prefill_s = time.perf_counter() - started_s
    while len(seen) < len(requests):
        seen |= {event.request_id for event in engine.step()}
    kv_bytes, steps_s = engine.stats().used_bytes, []
    while engine.stats().running == len(requests):
        started_s = time.perf_counter()
        engine.step()
        steps_s.append(time.perf_counter() - started_s)
    while engine.has_work:
        engine.step()
    return Run(prefill_s, statistics.median(steps_s), kv_bytes)


def _compare(folder: str, repeats: int, concurrent: int) -> None:
    engine = Engine.from_config(
        EngineConfig(model=folder, dtype="bfloat16", kv_cache_bytes=4 * 2**30, image_cache_bytes=0)
    )
    prompt = make_prompt(engine)
    print(f"{len(prompt.ids)} prompt tokens, attention {engine.plan.attention}")
    alone: dict[str, list[Run]] = {policy: [] for policy in POLICIES}
    together: dict[str, list[Run]] = {policy: [] for policy in POLICIES}
    for _ in range(repeats):
        for policy in POLICIES:
            alone[policy].append(measure(engine, prompt.requests(1, policy, 8)))
            many = prompt.requests(concurrent, policy, concurrent + 12)
            together[policy].append(measure(engine, many))
    full, kept = (min(run.prefill_s for run in alone[policy]) for policy in POLICIES)
    print(f"prefill        full {full:.3f} s   {POLICIES[1]} {kept:.3f} s   {kept / full:.2f}x")
    full, kept = (min(run.step_s for run in together[policy]) for policy in POLICIES)
    print(
        f"decode x{concurrent}     full {concurrent / full:.0f} tokens/s   "
        f"{POLICIES[1]} {concurrent / kept:.0f} tokens/s   {full / kept:.2f}x"
    )
    full, kept = (together[policy][0].kv_bytes for policy in POLICIES)
    print(f"KV bytes x{concurrent}   full {full:,}   {POLICIES[1]} {kept:,}   {kept / full:.2f}x")
    _compare_generate(engine, prompt, folder, repeats)


def _compare_generate(engine: Engine, prompt: Prompt, folder: str, repeats: int) -> None:
    """One request, 64 tokens, whole: ours at full cache against transformers."""
    model, _ = load_model(folder, dtype=torch.bfloat16, device="cpu")
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt.ids])
    pixels = torch.cat([torch.tensor(image.tensors["pixel_values"]) for image in prompt.images])
    ours_s, theirs_s = [], []
    for _ in range(repeats):
        started_s = time.perf_counter()
        list(engine.generate(prompt.requests(1, "full", 64)))
        ours_s.append(time.perf_counter() - started_s)
        started_s = time.perf_counter()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels.bfloat16(),
            max_new_tokens=64,
            do_sample=False,
            pad_token_id=0,
        )
        theirs_s.append(time.perf_counter() - started_s)
    ours, theirs = min(ours_s), min(theirs_s)
    print(f"alone, 64 tok  generate() {theirs:.2f} s   ours {ours:.2f} s   {ours / theirs:.2f}x")


def make_prompt(engine: Engine) -> Prompt:
    """Two noise images and forty words: about 1,200 tokens at 576 tokens an image."""
    workload = Workload(engine.info.name, 1, 1)
    images = tuple(
        engine.processor.image(noise_image(seed, workload), f"noise-{seed}") for seed in range(2)
    )
    text = " ".join(f"w{i}" for i in range(10, 10 + workload.words))
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    return Prompt(engine.processor.prompt([{"role": "user", "content": content}], images), images)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server.bench.own")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model-dir", type=Path, help="a checkpoint; default: a random one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
