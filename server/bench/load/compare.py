"""Two load runs side by side, with ratios. Refuses runs that did not ask the same.

The same questions at the same pace: workload and schedule are equal. Servers, models, policies and
commits may differ; that is what one compares.
"""

from collections.abc import Callable, Iterator, Sequence

from lookm.bench.records import Json
from server.bench.load.report import described
from server.bench.tables import seconds, text_table
from server.sizes import format_size

Show = Callable[[float], str]


def compare(first: Json, second: Json, *, any_workload: bool = False) -> Iterator[str]:
    """The lines of the table; ratios are the second over the first. Raises `ValueError`."""
    differing = differences(first, second)
    if differing and not any_workload:
        raise ValueError(
            f"these runs are not of the same workload: {', '.join(differing)}. "
            "Compare them anyway with --any-workload"
        )
    for name, report in (("A", first), ("B", second)):
        mix = ", ".join(f"{policy} ({weight:g})" for policy, weight in report["mix"].items())
        yield f"{name}: {report['model']} at {report['url']}, {mix}, commit {report['commit']}"
        yield f"   {described(report)}"
    for difference in differing:
        yield f"not the same: {difference}"
    yield ""
    yield from text_table(rows(first, second))
    shared = [policy for policy in first["policies"] if policy in second["policies"]]
    if len(first["policies"]) + len(second["policies"]) > 2:
        for policy in shared:
            yield ""
            yield from text_table(rows(first, second, policy))


def differences(first: Json, second: Json) -> list[str]:
    """What of workload, schedule and SLO differs: `images 2 / 4`."""
    found = []
    for part in ("workload", "schedule", "slo"):
        ours, theirs = first[part], second[part]
        for key in sorted({*ours, *theirs}):
            if ours.get(key) != theirs.get(key):
                found.append(f"{part} {key} {ours.get(key, '-')} / {theirs.get(key, '-')}")
    return found


def rows(first: Json, second: Json, policy: str | None = None) -> list[tuple[str, ...]]:
    """The table of one policy's requests, or of all of them and the pool."""
    pair = [run["total"] if policy is None else run["policies"][policy] for run in (first, second)]
    table: list[tuple[str, ...]] = [(policy or "all requests", "A", "B", "B / A")]
    for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s"):
        for at in ("p50", "p90", "p99"):
            values = [(each[name] or {}).get(at) for each in pair]
            table.append(_line(f"{name.removesuffix('_s').upper()} {at}", values, seconds))
    for name, words, show in (
        ("output_tokens_per_s", "tokens/s", "{:.1f}".format),
        ("requests_per_s", "answers/s", "{:.2f}".format),
        ("good_per_s", "good answers/s", "{:.2f}".format),
        ("kv_bytes_mean", "KV of a prompt", _size),
    ):
        table.append(_line(words, [each[name] for each in pair], show))
    failed = [each["requests"] - each["completed"] for each in pair]
    table.append(_line("failed", failed, "{:.0f}".format))
    if policy is None and first["kv"] and second["kv"]:
        for name, words in (
            ("used_bytes_mean", "KV held, mean"),
            ("used_bytes_peak", "KV held, peak"),
        ):
            table.append(_line(words, [first["kv"][name], second["kv"][name]], _size))
    return table


def _line(name: str, pair: Sequence[float | None], show: Show) -> tuple[str, ...]:
    first, second = pair
    ratio = "-" if not first or second is None else f"{second / first:.2f}x"
    return (name, *("-" if value is None else show(value) for value in pair), ratio)


def _size(value: float) -> str:
    return format_size(round(value))
