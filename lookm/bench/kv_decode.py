"""Decoding with the cache at 16 bits and at int8, side by side: two engines, step by step in turn.

    python -m lookm.bench.kv_decode                # a random LLaVA of 226 M parameters, bfloat16

Every request decodes at full cache. The engines take their steps in pairs, each first in every
other pair, and the median of the pairs' ratios counts: what else a machine does meets both.
`--json` writes:

    {"kind": "kv-decode", "command", "commit", "hardware", "versions", "measured_at",
     "attention", "threads", "prompt_tokens", "concurrent", "pairs", "speed_ratio",
     "rows": [{"kv_cache_dtype", "step_s", "kv_bytes"}]}
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lookm.bench.engine import Prompt, make_prompt
from lookm.bench.provenance import provenance
from lookm.bench.random_checkpoint import SHAPES, write
from lookm.bench.records import Json, save
from lookm.config import EngineConfig, KvCacheDType
from lookm.engine import Engine

ANSWER_TOKENS = 1500
DTYPES: tuple[KvCacheDType, ...] = ("auto", "int8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lookm.bench.kv_decode")
    parser.add_argument("--concurrent", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=41)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the report, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        write(SHAPES["mid"], Path(scratch) / "mid")
        report = compare(str(Path(scratch) / "mid"), options.concurrent, options.pairs)
    report["command"] += f" --threads {options.threads} --concurrent {options.concurrent}"
    for row in report["rows"]:
        print(f"{row['kv_cache_dtype']:<5} {row['step_s'] * 1e3:.1f} ms, {row['kv_bytes']:,} bytes")
    print(f"int8 decodes at {report['speed_ratio']:.2f}x the speed")
    if options.json is not None:
        save(report, options.json)
    return 0


def compare(folder: str, concurrent: int, pairs: int) -> Json:
    """The report of `pairs` pairs of steps."""
    engines = {name: _engine(folder, name) for name in DTYPES}
    prompt = make_prompt(next(iter(engines.values())))
    held = {name: _begin(engine, prompt, concurrent, pairs) for name, engine in engines.items()}
    spent_s: dict[KvCacheDType, list[float]] = {name: [] for name in DTYPES}
    for pair in range(pairs):
        for name in DTYPES if pair % 2 else DTYPES[::-1]:
            started_s = time.perf_counter()
            engines[name].step()
            spent_s[name].append(time.perf_counter() - started_s)
        assert all(engine.stats().running == concurrent for engine in engines.values())
    ratios = [wide / narrow for wide, narrow in zip(*spent_s.values(), strict=True)]
    return {
        "kind": "kv-decode",
        **provenance("python -m lookm.bench.kv_decode"),
        "attention": engines["auto"].plan.attention,
        "threads": torch.get_num_threads(),
        "prompt_tokens": len(prompt.ids),
        "concurrent": concurrent,
        "pairs": pairs,
        "speed_ratio": statistics.median(ratios),
        "rows": [
            {
                "kv_cache_dtype": name,
                "step_s": statistics.median(spent_s[name]),
                "kv_bytes": held[name],
            }
            for name in DTYPES
        ],
    }


def _engine(folder: str, name: KvCacheDType) -> Engine:
    config = EngineConfig(
        model=folder, dtype="bfloat16", kv_cache_bytes=2 * 2**30, kv_cache_dtype=name
    )
    return Engine.from_config(config)


def _begin(engine: Engine, prompt: Prompt, concurrent: int, pairs: int) -> int:
    """Prefill all requests, so that only decoding is left; the KV bytes they hold."""
    # Long enough that nobody ends while the last ones are prefilled, however slowly.
    for request in prompt.requests(concurrent, "full", pairs + ANSWER_TOKENS):
        engine.add(request)
    seen: set[str] = set()
    while len(seen) < concurrent:
        seen |= {event.request_id for event in engine.step()}
    assert engine.stats().running == concurrent
    return engine.stats().used_bytes


if __name__ == "__main__":
    sys.exit(main())
