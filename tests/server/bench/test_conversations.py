"""What `lookm bench conversations` asks and counts."""

import json
from typing import Any

import pytest

from server.bench.conversations import Chats, _served
from server.bench.load.client import Sample
from server.bench.load.workload import chat_body


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ("default", None),
        ("look-m@0.2", "look-m@0.2"),
        ("look-m@0.2+kept", {"method": "look-m", "keep": 0.2, "reuse": "kept"}),
        ("full+none", {"method": "full", "reuse": "none"}),
    ],
)
def test_a_policy_may_say_what_it_reuses(policy: str, field: Any) -> None:
    asked = json.loads(chat_body("m", [{"role": "user", "content": "hi"}], 8, policy))
    assert asked.get("kv_cache") == field


def sample(ttft_s: float, error: str | None = None) -> Sample:
    return Sample(0, "full", 0.0, 0.0, piece_s=[ttft_s], end_s=ttft_s, error=error)


def test_served_are_those_whose_later_turns_all_begin_in_time() -> None:
    chats = Chats("m", users=4, turns=3)
    users = [
        [sample(9), sample(1), sample(2)],
        [sample(1), sample(1), sample(2.1)],
        [sample(1), sample(1, "500")],
        [sample(1), sample(1)],
    ]
    assert _served(chats, users) == 1
