"""Counters that survive the worker: `EngineStats` summed over every worker there has been.

Pure functions of `EngineStats`; the names decide (`*_total` and `*_s` only grow, the rest is now).
"""

import dataclasses

from lookm.types import EngineStats

ZERO = EngineStats(capacity_bytes=0, used_bytes=0, full_bytes=0, running=0, waiting=0)
COUNTERS = tuple(
    field.name for field in dataclasses.fields(EngineStats) if field.name.endswith(("_total", "_s"))
)


def add(finished: EngineStats, current: EngineStats) -> EngineStats:
    """`current`, with the counters of `finished` added; the gauges of `finished` are forgotten."""
    sums = {name: getattr(finished, name) + getattr(current, name) for name in COUNTERS}
    return dataclasses.replace(current, **sums)
