"""Two dials of one trade: how finely images are seen, and how much of what was seen is kept.

    python -m lookm.bench.random_checkpoint tiles /tmp/tiles
    lookm serve --model /tmp/tiles --port 8123
    python -m server.bench.detail --url http://127.0.0.1:8123 --json detail.json

Asks about two pages in each detail under each policy, and writes what the server says of it: tokens
and bytes, which no machine and no weights change. Nothing of time or quality.
"""

import argparse
import base64
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from lookm.bench.provenance import provenance
from lookm.bench.records import Json

PAGE = (1200, 1600)  # pixels: width and height
NUM_PAGES = 2
DETAILS: tuple[Json, ...] = (
    {"detail": "auto"},
    {"max_tokens_per_image": 2048},
    {"max_tokens_per_image": 1024},
    {"detail": "low"},
)
POLICIES = ("full", "look-m@0.5", "look-m@0.2")
TIMEOUT_S = 300.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m server.bench.detail")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with httpx.Client(base_url=options.url, timeout=TIMEOUT_S) as http:
        rows = list(measured(http, options.seed))
    report = {"kind": "detail", **provenance(f"python -m server.bench.detail --url {options.url}")}
    report |= {"seed": options.seed, "page": PAGE, "pages": NUM_PAGES, "rows": rows}
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(json.dumps(row))
    return 0


def measured(http: httpx.Client, seed: int) -> Iterator[Json]:
    """A row for each detail and policy."""
    model = http.get("/v1/models").raise_for_status().json()["data"][0]["id"]
    rng = np.random.default_rng(seed)
    pages = [_page(rng) for _ in range(NUM_PAGES)]
    for detail in DETAILS:
        for policy in POLICIES:
            content: list[Any] = [
                {"type": "image_url", "image_url": {"url": page, **detail}} for page in pages
            ]
            content.append({"type": "text", "text": "What is on these pages?"})
            messages = [{"role": "user", "content": content}]
            body = {"model": model, "messages": messages, "kv_cache": policy, "max_tokens": 1}
            answer = http.post("/v1/chat/completions", json=body).raise_for_status().json()
            usage, kept = answer["usage"], answer["usage"]["kv_cache"]
            yield {
                "detail": detail,
                "policy": policy,
                "tokens_per_image": usage["prompt_tokens_details"]["tokens_per_image"],
                "prompt_tokens": usage["prompt_tokens"],
                "kept_tokens": kept["kept_tokens"],
                "bytes": kept["bytes"],
            }


def table(report: Json) -> list[tuple[str, ...]]:
    """A line a detail: the tokens of a page, then what the prompt holds under each policy."""
    rows = report["rows"]
    whole = rows[0]["bytes"]
    lines = [("detail", "tokens a page", *(f"`{policy}`" for policy in POLICIES))]
    for detail in DETAILS:
        found = [row for row in rows if row["detail"] == detail]
        (name, value), *_ = detail.items()
        shown = f"`{value}`" if name == "detail" else f"at most {value:,}"
        cells = (f"{row['bytes'] / 2**20:.2f} MiB ({row['bytes'] / whole:.0%})" for row in found)
        lines.append((shown, f"{found[0]['tokens_per_image'][0]:,}", *cells))
    return lines


def _page(rng: np.random.Generator) -> str:
    """Blots as a PNG data URI: small to send, another for each page."""
    small = Image.fromarray(rng.integers(0, 255, (16, 12, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize(PAGE, Image.Resampling.NEAREST).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
