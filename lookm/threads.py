"""How OpenMP's threads wait for each other. Knows environment variables, and no torch."""

import os

SPINS = "2000"  # of a loop: some microseconds


def sleep_while_waiting() -> None:
    """Waiting threads sleep instead of spinning, but for a moment; what the operator set stays.

    To be called before torch is imported: later it has no effect. A thread that spins takes the
    core that the one it waits for needs, where others compute as well: with four busy processes on
    two cores a decode step took eight times as long. Waking up costs a tenth of a step, hence the
    moment: it bridges the time between two products of a step.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
