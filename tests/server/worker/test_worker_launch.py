"""What a worker process is started with."""

import pytest

from server.worker.launch import HEAP, worker_environment


@pytest.mark.parametrize(
    ("before", "first"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=3", "glibc.malloc.check=3"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_the_heap_is_set_unless_the_operator_decided(
    monkeypatch: pytest.MonkeyPatch, before: str | None, first: str
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if before is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", before)
    tunables = worker_environment()["GLIBC_TUNABLES"].split(":")
    assert tunables[0] == first
    names = [each.partition("=")[0] for each in tunables]
    assert sorted(set(names) - {"glibc.malloc.check"}) == sorted(HEAP)
    assert len(set(names)) == len(names)
