"""The report of `kv_dtypes` as a Markdown table. Knows the report and nothing of engines."""

from collections.abc import Iterator
from typing import Any

from lookm.eval.questions import FULL

Json = dict[str, Any]


def lines(report: Json) -> Iterator[str]:
    """The report as a Markdown table, ordered by method, then bytes."""
    yield "| `kv_cache` | stored as | KV bytes | exact answers | same answer as at full, 16 bits |"
    yield "|---|---|---|---|---|"
    ordered = sorted(
        report["rows"],
        key=lambda each: (each["policy"] != FULL, _method(each["policy"]), each["bytes_share"]),
    )
    for each in ordered:
        kind = {"auto": "16 bits"}.get(each["kv_cache_dtype"], each["kv_cache_dtype"])
        shares = (_share(each, name) for name in ("right", "agrees"))
        bytes_share = f"{each['bytes_share']:.0%}"
        yield f"| `{each['policy']}` | {kind} | {bytes_share} | {' | '.join(shares)} |"


def _method(policy: str) -> str:
    return policy.partition("@")[0]


def _share(each: Json, name: str) -> str:
    return f"{each[name]:.0%} ({each[name + '_low']:.0%} to {each[name + '_high']:.0%})"
