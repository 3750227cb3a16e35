"""Answers that a test makes up, as the server would stream them: hostile, broken, with positions.

They reach the page instead of the server's, so that every bit of what it draws is known.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np


def stream(*texts: str, positions: dict[str, Any] | None = None, done: bool = True) -> str:
    """The body of a streamed answer; one that breaks off where it is not `done`."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    cache: dict[str, Any] = {
        "method": "look-m",
        "prompt_tokens": 140,
        "image_tokens": 128,
        "kept_tokens": 28,
        "merged_tokens": 56,
        "bytes": 200 * 1024,
        "full_bytes": 1000 * 1024,
        "compressed": True,
    }
    if positions is not None:
        cache["positions"] = positions
    usage = {"prompt_tokens": 140, "completion_tokens": len(texts), "kv_cache": cache}
    sent: list[Any] = [*chunks, {"choices": [], "usage": usage}] if done else chunks
    events = [f"data: {json.dumps(each)}\n\n" for each in sent]
    return "".join(events) + ("data: [DONE]\n\n" if done else "")


def failing_stream(*texts: str, message: str) -> str:
    """A stream in which the server says that it failed."""
    error = {"message": message, "type": "server_error", "param": None, "code": "engine_failed"}
    failure = f"event: error\ndata: {json.dumps({'error': error})}\n\n"
    return stream(*texts, done=False) + failure + "data: [DONE]\n\n"


def positions_of(
    kept_LKT: np.ndarray,
    merged_LKT: np.ndarray | None,
    images: Sequence[dict[str, Any]],
    text: Sequence[dict[str, Any]] = (),
    num_unknown: int = 0,
) -> dict[str, Any]:
    """`usage.kv_cache.positions`, as it is documented."""
    num_layers, num_kv_heads, num_tokens = kept_LKT.shape
    return {
        "encoding": "bitmap+zlib",
        "num_tokens": num_tokens,
        "num_layers": num_layers,
        "num_kv_heads": num_kv_heads,
        "num_unknown": num_unknown,
        "kept": _bitmap(kept_LKT),
        "merged": None if merged_LKT is None else _bitmap(merged_LKT),
        "text": list(text),
        "images": list(images),
    }


def _bitmap(bits_LKT: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.packbits(bits_LKT, axis=-1).tobytes())).decode()
