"""WHERE kept keys and values live. Read `pool` (pages), then `table` (a sequence's rows)."""

from lookm.cache.pool import PagePool
from lookm.cache.table import DecodeTables, SequenceCache, upload

__all__ = ["DecodeTables", "PagePool", "SequenceCache", "upload"]
