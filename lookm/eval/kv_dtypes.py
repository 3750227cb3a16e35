"""What storing the cache in bytes costs, and what it buys: every policy at 16 bits and at int8.

    lookm eval --suite kv-dtypes --policies look-m@0.2 look-m@0.37

A row at int8 takes little more than half of one at 16 bits, so that 0.37 of the rows at int8 are as
many bytes as 0.2 of them at 16 bits: which answers better? The demo suite's questions, all shares
of bytes and all agreement against the full cache at 16 bits. Writes

    {"kind": "kv-dtypes", "command", ..., "seed", "questions", "rows": [
        {"policy", "kv_cache_dtype", "bytes_share",
         "right", "right_low", "right_high", "agrees", "agrees_low", "agrees_high"}]}

Knows engines and scores; `kv_dtypes_table` shows it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lookm.config import EngineConfig, KvCacheDType
from lookm.engine import Engine
from lookm.eval.local import Local
from lookm.eval.questions import FULL, Answer, Question
from lookm.eval.run import ask_all, open_store
from lookm.eval.scores import score

DTYPES: tuple[KvCacheDType, ...] = ("auto", "int8")

Json = dict[str, Any]


def study(
    config: EngineConfig, questions: Sequence[Question], policies: Sequence[str], out: Path
) -> list[Json]:
    """The rows of the report. Answers go to a folder of `out` each; the same one goes on."""
    found: dict[KvCacheDType, Mapping[tuple[str, str], Answer]] = {}
    for name in DTYPES:
        backend = Local(Engine.from_config(replace(config, kv_cache_dtype=name)))
        store = open_store(out / name, backend, {"suite": "demo"})
        ask_all(backend, questions, policies, store)
        found[name] = store.answers
    keys = [question.key for question in questions]
    return [
        row(policy, name, [found[name][key, policy] for key in keys],
            [found["auto"][key, FULL] for key in keys])
        for name in DTYPES
        for policy in policies
    ]  # fmt: skip


def row(
    policy: str, kv_cache_dtype: str, answers: Sequence[Answer], at_full: Sequence[Answer]
) -> Json:
    """One policy at one type, beside the same questions at full cache and 16 bits."""
    counted = score(policy, answers, at_full)
    shares = [
        (one.kept_bytes or 0) / (full.full_bytes or 1)
        for one, full in zip(answers, at_full, strict=True)
    ]
    names = ("right", "right_low", "right_high", "agrees", "agrees_low", "agrees_high")
    return {
        "policy": policy,
        "kv_cache_dtype": kv_cache_dtype,
        "bytes_share": round(sum(shares) / len(shares), 4),
        **{name: round(getattr(counted, name), 4) for name in names},
    }
