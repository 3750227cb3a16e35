"""`kv_cache` as an object: what a request may say of its cache. Knows fields, not what they do."""

from typing import Annotated, Literal

from pydantic import Field

from lookm.types import Reuse
from server.openai.schemas.fields import Honoured
from server.openai.schemas.strict import NUMBER, OBJECT, Strict


class KeepRange(Strict):
    """An elastic `keep`: at least, and at most, this fraction of the prompt."""

    min: Annotated[float, Honoured("the least that is kept, however many requests there are")]
    max: Annotated[float, Honoured("the most, where there is room for it")]


class KvCache(Strict):
    """How much of this request's prompt cache is kept, in full. See `lookm.CachePolicy`."""

    method: Annotated[
        str | None,
        Honoured("a preset; may be left out where only `reuse` and `positions` are said"),
    ] = None
    keep: Annotated[
        Annotated[float, NUMBER] | Annotated[KeepRange, OBJECT] | None,
        Honoured(
            'fraction of the prompt that is kept; `{"min": 0.1, "max": 0.5}`: the largest that '
            "lets nobody wait when the request starts"
        ),
    ] = None
    keep_tokens: Annotated[
        Annotated[int, Field(lt=10**9)] | None, Honoured("tokens that are kept")
    ] = None
    recent: Annotated[float | None, Honoured("share of the kept that is recent")] = None
    merge: Annotated[
        Literal["none", "average", "pivot", "weighted"] | None, Honoured("how evicted keys merge")
    ] = None
    text: Annotated[
        Literal["protect", "prior", "none"] | None, Honoured("how text is preferred to images")
    ] = None
    reuse: Annotated[
        Reuse | None,
        Honoured(
            "exact (the default): what earlier prompts with the same beginning computed is taken "
            "over, for the same answer; kept: a later turn goes on from what earlier turns under "
            "the same policy kept, and only new images are compressed; none: everything is computed"
        ),
    ] = None
    positions: Annotated[
        bool | None,
        Honoured(
            "true: `usage.kv_cache.positions` says which tokens of the prompt each layer and KV "
            "head holds, and which patch of which image each is ([the format](positions.md)); with "
            "`n`, of the first choice; refused where the server runs with `--no-positions`"
        ),
    ] = None
