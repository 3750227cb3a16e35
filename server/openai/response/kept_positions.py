"""`usage.kv_cache.positions` of an answer: what the engine says was kept, and what it stands for.

Knows `lookm.positions`; a large prompt's bits take a while to pack: not on the event loop.
"""

from lookm import positions
from lookm.kept import KeptPositions
from lookm.types import Request
from server.openai.protocols import ChatProcessor
from server.openai.schemas.usage import KeptPositionsUsage


def positions_usage(
    kept: KeptPositions, request: Request, processor: ChatProcessor
) -> KeptPositionsUsage:
    """What is sent of them."""
    found = positions.describe(kept, request.prompt_ids, request.images, processor)
    return KeptPositionsUsage.model_validate(positions.encode(found))
