"""What is compared with what."""

from server.bench.load.client import Sample
from server.bench.load.generator import Run
from server.bench.transformers_serve import line, peers, row


def test_the_baseline_comes_first_and_gets_only_fields_it_knows():
    baseline, full, compressed = peers("/models/mid")
    assert baseline.name == "transformers serve"
    plain = baseline.workload(8)
    assert (plain.ignore_eos, plain.policies) == (False, (("default", 1.0),))
    assert full.workload(8).policies == (("full", 1.0),)
    assert compressed.workload(8).policies == (("look-m@0.2", 1.0),)


def test_a_row_counts_all_clients_over_the_wall_time():
    samples = tuple(
        Sample(i, "full", 0.0, 0.0, [first], 4.0, finish, output_tokens=8)
        for i, (first, finish) in enumerate([(1.0, "length"), (3.0, "stop")])
    )
    numbers = row("ours", Run(samples, (), 4.0))
    assert numbers == {
        "server": "ours", "output_tokens_per_s": 4.0, "ttft_max_s": 3.0, "complete": False,
    }  # fmt: skip
    assert "INCOMPLETE" in line(numbers, numbers)
    assert "(2.00x)" in line(numbers | {"ttft_max_s": 6.0}, numbers)
