"""What `/metrics` shows, as prometheus_client takes and gives it. Knows no series by name."""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric


class Families(CollectorRegistry):
    """Families that are at hand, in the form that `generate_latest` takes."""

    def __init__(self, families: Iterator[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return self._families


def without_created(families: Iterable[Metric]) -> Iterator[Metric]:
    """Without the creation times that nobody plots."""
    for family in families:
        family.samples = [s for s in family.samples if not s.name.endswith("_created")]
        yield family
