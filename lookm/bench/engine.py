"""This engine beside itself and beside plain `generate()`: what compression costs and what it buys.

    python -m lookm.bench.engine                   # a random LLaVA of 226 M parameters, bfloat16

Prefill time with a policy over prefill without, decode speed and KV bytes at 16 concurrent
requests, and one request alone against transformers' `generate()` on the same weights. Runs
alternate, and the best of several counts, because machines are shared. No HTTP: servers are
compared by `server.bench.transformers_serve`. `--json` writes:

    {"kind": "own", "command", "commit", "hardware", "versions", "measured_at",
     "attention", "prompt_tokens", "images", "concurrent",
     "rows": [{"policy", "prefill_s", "decode_tokens_per_s", "kv_bytes"}], full first
     "alone": {"tokens", "ours_s", "generate_s"}}
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lookm.bench.noise_image import noise_image
from lookm.bench.provenance import provenance
from lookm.bench.random_checkpoint import SHAPES, write
from lookm.bench.records import Json, save
from lookm.config import EngineConfig
from lookm.engine import Engine
from lookm.models.loading import load_model
from lookm.policy import parse
from lookm.types import ImageInput, Request, Sampling

POLICIES = ("full", "look-m@0.2")
ALONE_TOKENS = 64
IMAGE_SIDE_PX = 336


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
        report = _compare(str(folder), options.repeats, options.concurrent)
    print("\n".join(lines(report)))
    if options.json is not None:
        save(report, options.json)
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


def lines(report: Json) -> Iterator[str]:
    """The report as text."""
    full, kept = report["rows"]
    name, many = kept["policy"], f"x{report['concurrent']}"
    yield f"{report['prompt_tokens']} prompt tokens, attention {report['attention']}"
    ratio = kept["prefill_s"] / full["prefill_s"]
    yield (
        f"prefill        full {full['prefill_s']:.3f} s   {name} {kept['prefill_s']:.3f} s   "
        f"{ratio:.2f}x"
    )
    speeds = [row["decode_tokens_per_s"] for row in (full, kept)]
    yield (
        f"decode {many:<7} full {speeds[0]:.0f} tokens/s   {name} {speeds[1]:.0f} tokens/s   "
        f"{speeds[1] / speeds[0]:.2f}x"
    )
    held = [row["kv_bytes"] for row in (full, kept)]
    yield f"KV bytes {many:<5} full {held[0]:,}   {name} {held[1]:,}   {held[1] / held[0]:.2f}x"
    ours, theirs = report["alone"]["ours_s"], report["alone"]["generate_s"]
    yield (
        f"alone, {report['alone']['tokens']} tok  generate() {theirs:.2f} s   ours {ours:.2f} s   "
        f"{ours / theirs:.2f}x"
    )


def _compare(folder: str, repeats: int, concurrent: int) -> Json:
    engine = Engine.from_config(
        EngineConfig(model=folder, dtype="bfloat16", kv_cache_bytes=4 * 2**30, image_cache_bytes=0)
    )
    prompt = make_prompt(engine)
    alone: dict[str, list[Run]] = {policy: [] for policy in POLICIES}
    together: dict[str, list[Run]] = {policy: [] for policy in POLICIES}
    for _ in range(repeats):
        for policy in POLICIES:
            alone[policy].append(measure(engine, prompt.requests(1, policy, 8)))
            many = prompt.requests(concurrent, policy, concurrent + 12)
            together[policy].append(measure(engine, many))
    ours_s, theirs_s = _against_generate(engine, prompt, folder, repeats)
    return {
        "kind": "own",
        **provenance("make bench"),
        "attention": engine.plan.attention,
        "prompt_tokens": len(prompt.ids),
        "images": len(prompt.images),
        "concurrent": concurrent,
        "rows": [
            {
                "policy": policy,
                "prefill_s": min(run.prefill_s for run in alone[policy]),
                "decode_tokens_per_s": concurrent / min(run.step_s for run in together[policy]),
                "kv_bytes": together[policy][0].kv_bytes,
            }
            for policy in POLICIES
        ],
        "alone": {"tokens": ALONE_TOKENS, "ours_s": ours_s, "generate_s": theirs_s},
    }


def _against_generate(
    engine: Engine, prompt: Prompt, folder: str, repeats: int
) -> tuple[float, float]:
    """Seconds of one request, whole: ours at full cache, and transformers'."""
    model, _ = load_model(folder, dtype=torch.bfloat16, device=torch.device("cpu"))
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt.ids])
    pixels = torch.cat([torch.tensor(image.tensors["pixel_values"]) for image in prompt.images])
    ours_s, theirs_s = [], []
    for _ in range(repeats):
        started_s = time.perf_counter()
        list(engine.generate(prompt.requests(1, "full", ALONE_TOKENS)))
        ours_s.append(time.perf_counter() - started_s)
        started_s = time.perf_counter()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels.bfloat16(),
            max_new_tokens=ALONE_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        theirs_s.append(time.perf_counter() - started_s)
    return min(ours_s), min(theirs_s)


def make_prompt(engine: Engine) -> Prompt:
    """Two noise images and forty words: about 1,200 tokens at 576 tokens an image."""
    rng = np.random.default_rng(0)
    images = tuple(
        engine.processor.image(noise_image(rng, IMAGE_SIDE_PX), f"noise-{i}") for i in range(2)
    )
    text = " ".join(f"w{i}" for i in range(10, 50))
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    return Prompt(engine.processor.prompt([{"role": "user", "content": content}], images), images)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lookm.bench.engine")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the report, too")
    parser.add_argument("--model-dir", type=Path, help="a checkpoint; default: a random one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
