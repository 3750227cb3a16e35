"""Where a step's time goes on the device: the kernels of one decode step and one prefill, by time.

What to look at first when a number of the grid falls short. Times under the profiler; their sum is
the device's work, not the step's duration.
"""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from lookm.bench.gpu.fixture import Lab
from lookm.bench.gpu.sections import POLICIES, Numbers, drop, fill

MAX_KERNELS = 12  # of each step
NAME_CHARS = 72


def profiled(lab: Lab) -> Numbers:
    """Seconds and launches by kernel, for decode steps alone and full, and for prefills."""
    engine = lab.engine
    found: Numbers = {}
    for policy in POLICIES:
        for batch in (min(lab.scale.batches), max(lab.scale.batches)):
            requests = lab.requests(batch, policy, max_tokens=batch + 16)
            fill(engine, requests)
            engine.step()
            found |= _kernels(lab, f"decode x{batch}, {policy}", engine.step)
            drop(engine, requests)
        (request,) = lab.requests(1, policy)
        engine.add(request)
        found |= _kernels(lab, f"prefill, {policy}", engine.step)
        drop(engine, [request])
    return found


def _kernels(lab: Lab, what: str, call: Callable[[], Any]) -> Numbers:
    """The slowest kernels of one call, and the sum of all."""
    cuda = lab.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        call()
        lab.wait()
    rows: dict[str, tuple[float, int]] = {}
    for event in seen.key_averages():
        spent_us = event.self_device_time_total if cuda else event.self_cpu_time_total
        if spent_us:
            rows[event.key] = (spent_us / 1e6, event.count)
    found: Numbers = {
        f"{what}: all": {
            "seconds": sum(seconds for seconds, _ in rows.values()),
            "launches": sum(count for _, count in rows.values()),
        }
    }
    for name, (seconds, count) in sorted(rows.items(), key=lambda row: -row[1][0])[:MAX_KERNELS]:
        found[f"{what}: {name[:NAME_CHARS]}"] = {"seconds": seconds, "launches": count}
    return found
