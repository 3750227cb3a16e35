"""A request ready to paste: two small pictures drawn on the spot, and a question about the second.

Knows bash quoting and the demo model's pictures. Needs no file and no network.
"""

import base64
import io
import json
import shlex
from typing import Any

from lookm.demo.scenes import Scene, render

PICTURES = (
    Scene(kind="circle", colour="red", canvas=(64, 64), smooth=False),
    Scene(kind="star", colour="blue", canvas=(64, 64), smooth=False),
)
QUESTION = "What is in image 2?"
POLICY = "look-m@0.2"


def example_body(model: str) -> dict[str, Any]:
    """The body of a chat request with two images under a compressed cache."""
    images = [{"type": "image_url", "image_url": {"url": data_url(scene)}} for scene in PICTURES]
    return {
        "model": model,
        "messages": [
            {"role": "user", "content": [*images, {"type": "text", "text": QUESTION}]},
        ],
        "max_tokens": 40,
        "temperature": 0,
        "kv_cache": POLICY,
    }


def example_curl(base_url: str, model: str, *, with_key: bool = False) -> str:
    """That request as one bash command; the key, if one is needed, comes from the environment."""
    body = json.dumps(example_body(model), separators=(",", ":"))
    key = '  -H "Authorization: Bearer $LOOKM_API_KEY" \\\n' if with_key else ""
    return (
        f"curl -s {base_url}/v1/chat/completions \\\n"
        f"  -H 'Content-Type: application/json' \\\n{key}"
        f"  -d {shlex.quote(body)}"
    )


def data_url(scene: Scene) -> str:
    """The picture as a PNG of four colours: about 250 characters."""
    buffer = io.BytesIO()
    render(scene).quantize(4).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
