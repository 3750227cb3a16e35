"""This server beside `transformers serve`, in one run, on one machine, with the same weights.

    python -m server.bench.peers                 # needs: pip install accelerate

Writes a random LLaVA of 226 M parameters (speed does not depend on the weights; this says nothing
about quality), starts each server in turn on it in bfloat16, sends the same clients, and prints a
table with ratios. Knows how to start and stop servers; measuring is `load`'s.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from server.bench.load import Outcome, Workload, run

START_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to be measured: its name, its command, and what its requests carry in addition."""

    name: str
    command: tuple[str, ...]
    health: str
    model: str
    extra: tuple[tuple[str, object], ...] = ()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every peer and print the table; returns the exit status."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model_dir or _write_model(Path(scratch) / "mid")
        rows = []
        for peer in peers(str(folder)):
            workload = Workload(peer.model, options.clients, options.max_tokens, extra=peer.extra)
            with serving(peer, threads=options.threads) as base_url:
                asyncio.run(run(base_url, Workload(peer.model, 1, 8, extra=peer.extra)))  # warm
                outcome = asyncio.run(run(base_url, workload))
            rows.append((peer.name, outcome))
            print(_line(*rows[-1], rows[0][1]), flush=True)
    return 0 if all(outcome.complete for _, outcome in rows) else 1


def peers(folder: str) -> tuple[Peer, ...]:
    """`transformers serve` first: it is the baseline."""
    name = Path(folder).name
    ours = (sys.executable, "-m", "server", "serve", "--model", folder, "--dtype", "bfloat16")
    peer = (sys.executable, "-m", "transformers.cli.transformers", "serve", folder)
    baseline = (*peer, "--device", "cpu", "--dtype", "bfloat16")
    full = (("kv_cache", "full"), ("ignore_eos", True))
    compressed = (("kv_cache", "look-m@0.2"), ("ignore_eos", True))
    return (
        Peer("transformers serve", baseline, "/health", folder),
        Peer("lookm full", ours, "/readyz", name, full),
        Peer("lookm look-m@0.2", ours, "/readyz", name, compressed),
    )


@contextlib.contextmanager
def serving(peer: Peer, *, threads: int) -> Iterator[str]:
    """Start the peer on a free port, wait until it is ready, and stop it at the end."""
    port = _free_port()
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    process = subprocess.Popen(
        [*peer.command, "--host", "127.0.0.1", "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    base_url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(base_url + peer.health, process)
        yield base_url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise SystemExit(
                f"{process.args!r} ended with {process.returncode} before it was ready"
            )
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    raise SystemExit(f"no answer from {url} after {START_TIMEOUT_S} s")


def _write_model(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "lookm.models.synthetic", "mid", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return folder


def _line(name: str, outcome: Outcome, baseline: Outcome) -> str:
    speed = outcome.tokens_per_s / baseline.tokens_per_s
    wait = outcome.last_first_token_s / baseline.last_first_token_s
    return (
        f"{name:<20} {outcome.wall_s:7.1f} s   {outcome.tokens_per_s:7.1f} tokens/s ({speed:4.1f}x)"
        f"   last first token {outcome.last_first_token_s:6.1f} s ({wait:4.2f}x)"
        f"{'' if outcome.complete else '   INCOMPLETE'}"
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server.bench.peers")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--model-dir", type=Path, help="a checkpoint; default: a random one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
