"""The routing simulation: what must hold of any trace, whatever its numbers say."""

import itertools
import subprocess
import sys

import pytest

from server.bench.routing import (
    Asked,
    Fleet,
    Replica,
    Ring,
    Trace,
    compare,
    requests,
    routes,
    simulate,
)

SMALL = Trace(conversations=400, per_s=6, documents=150)
ROOMY = Fleet(replicas=4, store_tokens=10**9)


def test_a_trace_is_what_it_says_and_the_same_each_time() -> None:
    asked = requests(SMALL)
    assert asked == requests(SMALL)
    assert [each.at_s for each in asked] == sorted(each.at_s for each in asked)
    of = {each.conversation for each in asked}
    assert len(of) == SMALL.conversations
    assert len(asked) / len(of) == pytest.approx(SMALL.turns, rel=0.2)
    for conversation in of:
        turns = [each for each in asked if each.conversation == conversation]
        assert len({each.document for each in turns}) == 1
        grown = [b.tokens - a.tokens for a, b in itertools.pairwise(turns)]
        assert set(grown) <= {SMALL.turn_tokens}
    popular = sorted((sum(e.document == d for e in asked) for d in range(10)), reverse=True)
    assert popular[0] > 3 * popular[9]


def test_a_store_knows_what_it_was_told_until_others_push_it_out() -> None:
    replica = Replica(Fleet(store_tokens=250, prefill_per_s=100, known_cost=0.5))
    first = Asked(0, 1, 1, 100, 20)
    assert replica.serve(first) == (0, pytest.approx(1.2))
    assert replica.waiting_s(0.2) == pytest.approx(1.0)
    assert replica.serve(Asked(10, 1, 1, 100, 50)) == (120, pytest.approx(0.6 + 0.3))
    assert replica.serve(Asked(20, 2, 1, 100, 10))[0] == 100, "another's document, its own history"
    replica.serve(Asked(30, 3, 2, 240, 10))
    assert replica.serve(Asked(40, 1, 1, 100, 50))[0] == 0


def test_one_server_makes_all_ways_equal_and_no_store_knows_nothing() -> None:
    known = {one.known_ratio for one in compare(SMALL, Fleet(replicas=1, store_tokens=10**9))}
    assert len(known) == 1
    assert {one.known_ratio for one in compare(SMALL, Fleet(replicas=4, store_tokens=0))} == {0}


def test_with_room_keeping_conversations_together_finds_more() -> None:
    found = {one.route: one for one in compare(SMALL, ROOMY)}
    random, session = found["random"].known_ratio, found["hash of the session"].known_ratio
    assert random < session < found["hash of the first images"].known_ratio
    assert all(one.busiest_to_mean >= 1 for one in found.values())
    assert all(one.first_token_p50_s <= one.first_token_p95_s for one in found.values())


def test_spilling_bounds_what_a_popular_document_costs() -> None:
    busy = Trace(conversations=600, per_s=30, documents=50, zipf=1.5)
    fleet = Fleet(replicas=4, store_tokens=30_000, prefill_per_s=30_000)
    ways, asked = routes(fleet), requests(busy)
    plain, spilling = (
        simulate(name, ways[name], asked, fleet)
        for name in ("hash of the first images", "hash of the first images, spilling")
    )
    assert spilling.first_token_p95_s < plain.first_token_p95_s / 2
    assert spilling.busiest_to_mean < plain.busiest_to_mean


def test_a_ring_moves_only_the_part_of_who_goes() -> None:
    names = [f"conversation {n}" for n in range(3000)]
    eight, seven = Ring(8), Ring(7)
    moved = [name for name in names if eight.home(name) != seven.home(name)]
    assert all(eight.home(name) == 7 for name in moved)
    assert 0.05 < len(moved) / len(names) < 0.2


def test_it_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "server.bench.routing", "--conversations", "50"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.count("\n") == 8
