"""A picture as a `data:` URL: for requests, and for pages that hold their own pictures."""

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def png_url(picture: "Image.Image", *, optimize: bool = False) -> str:
    """As PNG; `optimize` takes longer for fewer bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=optimize)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
