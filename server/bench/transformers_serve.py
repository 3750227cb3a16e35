"""This server beside `transformers serve`, in one run, on one machine, with the same weights.

    python -m server.bench.transformers_serve                 # needs: pip install accelerate

Writes a random LLaVA of 226 M parameters (speed does not depend on the weights; this says nothing
about quality), starts each server in turn on it in bfloat16, sends the same clients, and prints a
table with ratios. Measuring is `generator`'s. `--json` writes:

    {"kind": "peers", "command", "commit", "hardware", "versions", "measured_at",
     "clients", "answer_tokens",
     "rows": [{"server", "output_tokens_per_s", "ttft_max_s", "complete"}], the baseline first}
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lookm.bench.provenance import provenance
from lookm.bench.random_checkpoint import SHAPES, write
from lookm.bench.records import Json, save
from server.bench.load.arrivals import Schedule
from server.bench.load.client import Target
from server.bench.load.generator import Run, run
from server.bench.load.measures import Slo, measure
from server.bench.load.workload import DEFAULT_POLICY, Spread, Workload
from server.bench.serving import lookm_command, serving

WARM_UP_TOKENS = Spread(8, 8)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to be measured: its name, its command, and how requests are put to it."""

    name: str
    command: tuple[str, ...]
    health: str
    model: str
    policy: str = DEFAULT_POLICY
    ignore_eos: bool = True

    def workload(self, answer_tokens: int) -> Workload:
        """Two images and forty words for each client."""
        return Workload(
            model=self.model,
            answer_tokens=Spread(answer_tokens, answer_tokens),
            policies=((self.policy, 1.0),),
            ignore_eos=self.ignore_eos,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every peer and print the table; returns the exit status."""
    options = _parser().parse_args(arguments)
    rows: list[Json] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model_dir or Path(scratch) / "mid"
        if options.model_dir is None:
            write(SHAPES["mid"], folder)
        for peer in peers(str(folder)):
            workload = peer.workload(options.answer_tokens)
            with serving(peer.command, health=peer.health, threads=options.threads) as url:
                warm = replace(workload, answer_tokens=WARM_UP_TOKENS, nonce=1)
                run(Target(url), warm, Schedule(concurrency=1, num_requests=1))
                clients = Schedule(concurrency=options.clients, num_requests=options.clients)
                rows.append(row(peer.name, run(Target(url), workload, clients)))
            print(line(rows[-1], rows[0]), flush=True)
    if options.json is not None:
        load = {"clients": options.clients, "answer_tokens": options.answer_tokens}
        save(
            {"kind": "peers", **provenance("make bench-peers"), **load, "rows": rows}, options.json
        )
    return 0 if all(each["complete"] for each in rows) else 1


def peers(folder: str) -> tuple[Peer, ...]:
    """`transformers serve` first: it is the baseline."""
    name = Path(folder).name
    ours = lookm_command(folder, "--dtype", "bfloat16")
    peer = (sys.executable, "-m", "transformers.cli.transformers", "serve", folder)
    baseline = (*peer, "--device", "cpu", "--dtype", "bfloat16")
    return (
        Peer("transformers serve", baseline, "/health", folder, ignore_eos=False),
        Peer("this server, full", ours, "/readyz", name, "full"),
        Peer("this server, look-m@0.2", ours, "/readyz", name, "look-m@0.2"),
    )


def row(name: str, measured: Run) -> Json:
    """One server's numbers. Complete: every client got as many tokens as it may."""
    numbers = measure(measured.samples, measured.wall_s, Slo())
    return {
        "server": name,
        "output_tokens_per_s": numbers["output_tokens_per_s"],
        "ttft_max_s": max(sample.ttft_s for sample in measured.samples),
        "complete": all(sample.finish == "length" for sample in measured.samples),
    }


def line(each: Json, baseline: Json) -> str:
    """A row as text, with ratios to the baseline."""
    speed = each["output_tokens_per_s"] / baseline["output_tokens_per_s"]
    wait = each["ttft_max_s"] / baseline["ttft_max_s"]
    return (
        f"{each['server']:<24} {each['output_tokens_per_s']:7.1f} tokens/s ({speed:4.1f}x)"
        f"   last first token {each['ttft_max_s']:6.1f} s ({wait:4.2f}x)"
        f"{'' if each['complete'] else '   INCOMPLETE'}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server.bench.transformers_serve")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--answer-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="write the report, too")
    parser.add_argument("--model-dir", type=Path, help="a checkpoint; default: a random one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
