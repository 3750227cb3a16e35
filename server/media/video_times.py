"""Which frames of a video are looked at, and how their times are written. Pure.

    times     at 0, 1/fps, 2/fps, ... seconds after the first frame; where those are more than
              `max_frames`, as many spread evenly from the first frame to the last
    frames    the one that is shown at such a time, each once: a slide show gives each slide once
    labels    its own time, `0:03.5`, from an hour on `1:02:03.5`, with more digits where frames are
              closer together

The container's own times count, whatever its frame rate.
"""

from bisect import bisect_right
from collections.abc import Sequence

ROUNDING_S = 1e-3  # containers round times to milliseconds


def sample(times_s: Sequence[float], fps: float, max_frames: int) -> list[int]:
    """Indices of the frames that are looked at. `times_s` are those of all, and begin at 0."""
    end_s = times_s[-1]
    last = int((end_s + ROUNDING_S) * fps)
    if last < max_frames:
        wanted = [n / fps for n in range(last + 1)]
    elif max_frames == 1:
        wanted = [end_s / 2]
    else:
        wanted = [end_s * n / (max_frames - 1) for n in range(max_frames)]
    return list(dict.fromkeys(bisect_right(times_s, each + ROUNDING_S) - 1 for each in wanted))


def labels(times_s: Sequence[float]) -> list[str]:
    """Each time as text, in as few digits as tell them from each other."""
    made: list[str] = []
    for num_digits in (1, 2, 3):
        made = [clock(time_s, num_digits) for time_s in times_s]
        if len(set(made)) == len(made):
            break
    return made


def clock(time_s: float, num_digits: int = 1) -> str:
    """A time as players show it.

    >>> clock(3.5), clock(59.96), clock(3723.5)
    ('0:03.5', '1:00.0', '1:02:03.5')
    """
    units = 10**num_digits
    minutes, rest = divmod(round(time_s * units), 60 * units)
    seconds = f"{rest / units:0{num_digits + 3}.{num_digits}f}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds}" if hours else f"{minutes}:{seconds}"
