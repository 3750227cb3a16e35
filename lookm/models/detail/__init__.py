"""How finely pictures are seen: `detail` and `max_tokens_per_image` of a request.

    Detail                what is asked
    Step, choose          the ways of showing a picture, and which of them is taken (`choice`)
    Ladder, Asked         a family's ways, the finest first (`ladder`; `bounded`, `views`, `anyres`)

The number of tokens of a step is known before a pixel is touched, and is what the processor then
makes. Knows processors' settings; no pixels, prompts or weights.
"""

from lookm.models.detail.choice import Detail, Level, Step, choose
from lookm.models.detail.ladder import Asked, Ladder, fixed, setting

__all__ = ["Asked", "Detail", "Ladder", "Level", "Step", "choose", "fixed", "setting"]
