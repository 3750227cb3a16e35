"""`usage.timings`: what one request spent its time on, in seconds.

The stages are pieces of time that do not overlap, so their sum is at most the total; the rest is
time between them: other requests' steps, the way to the engine and back.
"""

from lookm.types import Timing
from server.openai.schemas.usage import TimingsUsage


def timings_usage(timing: Timing, media_s: float, total_s: float) -> TimingsUsage:
    """From the engine's clocks and the API process's. The engine looks while it prefills."""
    look_s = min(timing.compress_s, timing.prefill_s)
    return TimingsUsage(
        queue=round(timing.queue_s, 6),
        media=round(media_s, 6),
        vision=round(timing.encode_s, 6),
        prefill=round(timing.prefill_s - look_s, 6),
        look=round(look_s, 6),
        decode=round(timing.decode_s, 6),
        total=round(total_s, 6),
    )
