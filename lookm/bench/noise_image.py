"""Pictures of coloured noise: what benches show a model whose answer nobody reads."""

import numpy as np
from PIL import Image

NUM_BLOCKS = 8


def noise_image(rng: np.random.Generator, side_px: int) -> Image.Image:
    """A picture of 8 x 8 blocks in random colours."""
    blocks = rng.integers(0, 256, (NUM_BLOCKS, NUM_BLOCKS, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((side_px, side_px), Image.Resampling.NEAREST)
