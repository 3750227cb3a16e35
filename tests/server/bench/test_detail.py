"""Two dials, asked of a server and shown as a table."""

import json
from typing import Any

import httpx

from server.bench.detail import DETAILS, NUM_PAGES, POLICIES, measured, table

TOKENS = {"auto": 64, "low": 16}


def served(request: httpx.Request) -> httpx.Response:
    """A server whose images take 64 tokens, 16 in low detail, or what a budget allows."""
    if request.method == "GET":
        return httpx.Response(200, json={"data": [{"id": "m"}]})
    body: dict[str, Any] = json.loads(request.content)
    *images, _ = body["messages"][0]["content"]
    asked = images[0]["image_url"]
    count = asked.get("max_tokens_per_image", 0) // 32 or TOKENS[asked["detail"]]
    assert len({image["image_url"]["url"] for image in images}) == NUM_PAGES, "other pages"
    keep = float(body["kv_cache"].partition("@")[2] or 1)
    held = {"kept_tokens": int(NUM_PAGES * count * keep), "bytes": int(2**20 * count * keep)}
    usage = {"prompt_tokens": NUM_PAGES * count, "kv_cache": held}
    usage["prompt_tokens_details"] = {"tokens_per_image": [count] * NUM_PAGES}
    return httpx.Response(200, json={"usage": usage})


def test_every_detail_is_asked_under_every_policy() -> None:
    with httpx.Client(transport=httpx.MockTransport(served), base_url="http://x") as http:
        rows = list(measured(http, seed=0))
    assert len(rows) == len(DETAILS) * len(POLICIES)
    header, auto, _, half, low = table({"rows": rows})
    assert header == ("detail", "tokens a page", "`full`", "`look-m@0.5`", "`look-m@0.2`")
    assert auto == ("`auto`", "64", "64.00 MiB (100%)", "32.00 MiB (50%)", "12.80 MiB (20%)")
    assert half[:3] == ("at most 1,024", "32", "32.00 MiB (50%)")
    assert low[-1] == "3.20 MiB (5%)"
