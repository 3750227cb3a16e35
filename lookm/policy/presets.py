"""The named policies, how they are written, and what is valid.

A preset is a list of parts; adding one is one entry in `PRESETS`. Knows nothing about tensors.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from types import MappingProxyType
from typing import get_args

from lookm.errors import PolicyError
from lookm.policy import depth, modality, scores
from lookm.policy.budgets import NUM_SINKS, sinks_then_recent
from lookm.policy.coverage import covering
from lookm.policy.depth import Adaptive
from lookm.policy.merges import MERGES
from lookm.policy.pins import Pins
from lookm.policy.recipe import Preset, Recipe
from lookm.types import CachePolicy, Merge, Needs, TextMode

DEFAULT_KEEP = 0.2
MIN_SHORT_TOKENS = 16

_SHORT = (
    f"write METHOD@FRACTION with a fraction kept in (0, 1], such as 'look-m@0.2', METHOD@TOKENS "
    f"with a whole number of tokens of at least {MIN_SHORT_TOKENS}, such as 'look-m@512', or "
    "METHOD@LEAST-MOST, such as 'look-m@0.1-0.5'"
)


_SUMS = Needs(sums=True)
_TEXT = Pins(text="protect")
_SNAPKV = Needs(window=scores.SNAPKV_WINDOW)
_ASKED = Needs(window=scores.SNAPKV_WINDOW, after_images=True, density=True)
_WINDOW = Pins(window=scores.SNAPKV_WINDOW)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "full": Preset(score=None),
        "look-m": Preset(scores.column_sum, _SUMS, pins=_TEXT, merge=MERGES["pivot"]),
        "look-m-average": Preset(scores.column_sum, _SUMS, pins=_TEXT, merge=MERGES["average"]),
        "look-m-weighted": Preset(scores.column_sum, _SUMS, pins=_TEXT, merge=MERGES["weighted"]),
        "look-m-evict": Preset(scores.column_sum, _SUMS, pins=_TEXT),
        "look-m-plus": Preset(
            covering,
            _ASKED,
            merge=MERGES["centroid"],
            depth=Adaptive(depth.density, depth.proportional),
            recent=0.0,
            about_images=True,
        ),
        "h2o": Preset(scores.column_sum, _SUMS),
        "mean-h2o": Preset(scores.column_mean, _SUMS),
        "roco": Preset(scores.roco, Needs(sums=True, squares=True)),
        "snapkv": Preset(scores.snapkv, _SNAPKV, pins=_WINDOW),
        "streaming": Preset(scores.position, budget=sinks_then_recent, pins=Pins(sinks=NUM_SINKS)),
        "random": Preset(scores.random),
        "pyramidkv": Preset(scores.snapkv, _SNAPKV, pins=_WINDOW, depth=depth.pyramid, recent=0.0),
        "vl-cache": Preset(
            scores.window_sum,
            _ASKED,
            depth=Adaptive(depth.density, depth.proportional),
            recent=0.1,
        ),
        "prefixkv": Preset(
            scores.shared_column_sum,
            _SUMS,
            depth=Adaptive(depth.priority_curve, depth.prefix),
            recent=0.0,
        ),
        "meda": Preset(
            scores.column_sum,
            Needs(sums=True, entropy=True),
            pins=_TEXT,
            merge=MERGES["average"],
            depth=Adaptive(depth.cross_modal_entropy, depth.softmax),
        ),
        "aircache": Preset(
            modality.elite_attention,
            Needs(queries=True),
            pins=_TEXT,
            depth=Adaptive(modality.strength_and_skew, modality.by_strength_and_skew),
            recent=0.0,
        ),
        "madakv": Preset(
            modality.preferring,
            Needs(window=modality.PROXIES),
            depth=Adaptive(modality.demand, modality.carried),
            recent=0.0,
            about_images=True,
        ),
        "mixkv": Preset(scores.mixkv, _SNAPKV, pins=_WINDOW, recent=0.0),
        "d2o": Preset(
            scores.column_sum,
            _SUMS,
            pins=Pins(sinks=NUM_SINKS),
            merge=MERGES["threshold"],
            depth=Adaptive(depth.unevenness, depth.even_first),
        ),
        "tova": Preset(scores.tova, Needs(window=1), recent=0.0),
        "keydiff": Preset(scores.keydiff, recent=0.0),
        "knorm": Preset(scores.knorm, recent=0.0),
        "expected-attention": Preset(
            scores.expected_attention,
            Needs(queries=True),
            pins=Pins(sinks=scores.EXPECTED_SINKS),
            recent=0.0,
        ),
    }
)


def resolve(policy: CachePolicy | str, presets: Mapping[str, Preset] = PRESETS) -> Recipe:
    """`policy`, or its short form, as parts.

    Raises `PolicyError` where it is unknown, out of range or contradictory. A method other than
    `full` with neither `keep` nor `keep_tokens` keeps the paper's 20 %. `presets` are the methods
    there are. A range that is one fraction is that fraction.
    """
    if isinstance(policy, str):
        policy = parse(policy)
    preset = _preset(policy.method, presets)
    _check_budget(policy)
    if policy.keep_min == policy.keep:
        policy = replace(policy, keep_min=None)
    _check_choice("merge", policy.merge, get_args(Merge))
    _check_choice("text", policy.text, get_args(TextMode))
    if preset.score is None:
        _check_full(policy)
    elif policy.keep is None and policy.keep_tokens is None:
        policy = replace(policy, keep=DEFAULT_KEEP)
    if policy.recent is None:
        policy = replace(policy, recent=preset.recent)
    if policy.text is not None:
        preset = replace(preset, pins=replace(preset.pins, text=policy.text))
    if policy.merge is not None:
        preset = replace(preset, merge=MERGES[policy.merge])
    return Recipe(policy, preset)


def parse(text: str) -> CachePolicy:
    """The short form: `"full"`, `"look-m"` (20 %), `"look-m@0.2"`, `"look-m@512"`, or elastic:
    `"look-m@0.1-0.5"`.

    A number of at most 1 is the fraction kept, a whole number of at least 16 (one page) a count of
    tokens, two fractions the least and the most. Anything else raises `PolicyError`.
    """
    method, at, amount = text.partition("@")
    preset = _preset(method)
    least, dash, most = amount.partition("-")
    if not at:
        return CachePolicy(method, keep=None if preset.score is None else DEFAULT_KEEP)
    if dash:
        policy = CachePolicy(method, keep=_fraction(most, text), keep_min=_fraction(least, text))
    elif amount.isascii() and amount.isdigit() and len(amount) < 10:
        tokens = int(amount)
        if tokens >= MIN_SHORT_TOKENS:
            policy = CachePolicy(method, keep_tokens=tokens)
        elif tokens == 1:
            policy = CachePolicy(method, keep=1.0)
        else:
            raise PolicyError(f"cannot read {amount!r} in {text!r}: {_SHORT}.")
    else:
        policy = CachePolicy(method, keep=_fraction(amount, text))
    resolve(policy)
    return policy


def to_string(policy: CachePolicy) -> str:
    """The short form of `policy`; what it cannot say (`recent`, `merge`, `text`) is left out."""
    policy = resolve(policy).policy
    if policy.keep_tokens is not None:
        return f"{policy.method}@{policy.keep_tokens}"
    if policy.method == "full" or policy.keep is None:
        return policy.method
    least = "" if policy.keep_min is None else f"{_digits(policy.keep_min)}-"
    return f"{policy.method}@{least}{_digits(policy.keep)}"


def least(policy: CachePolicy) -> CachePolicy:
    """The policy with the least that it may keep; itself, unless it is elastic."""
    if policy.keep_min is None:
        return policy
    return replace(policy, keep=policy.keep_min, keep_min=None)


def most(policy: CachePolicy) -> CachePolicy:
    """The policy with the most that it may keep; itself, unless it is elastic."""
    return replace(policy, keep_min=None)


def _digits(fraction: float) -> str:
    """All of its digits, without an exponent, so that `parse` reads the same."""
    return f"{Decimal(repr(float(fraction))).normalize():f}"


def _fraction(amount: str, text: str) -> float:
    plain = amount.isascii() and amount.replace(".", "", 1).isdigit()
    if not plain or not 0 < (fraction := float(amount)) <= 1:
        raise PolicyError(f"cannot read {amount[:40]!r} in {text[:80]!r}: {_SHORT}.")
    return fraction


def _preset(method: str, presets: Mapping[str, Preset] = PRESETS) -> Preset:
    if method not in presets:
        raise PolicyError(f"unknown method {method[:80]!r}: choose one of {', '.join(presets)}.")
    return presets[method]


def _check_budget(policy: CachePolicy) -> None:
    keep, keep_tokens = policy.keep, policy.keep_tokens
    if keep is not None and keep_tokens is not None:
        raise PolicyError("'keep' and 'keep_tokens' contradict each other: give one of them.")
    if keep is not None and not (_is_number(keep) and 0 < keep <= 1):
        raise PolicyError(f"'keep' is {keep}: it must be a fraction kept in (0, 1], such as 0.2.")
    if (least := policy.keep_min) is not None:
        if keep is None or not (_is_number(least) and 0 < least <= 1):
            raise PolicyError(
                f"an elastic 'keep' is from {least} to {keep}: both must be fractions kept in "
                "(0, 1], such as 0.1 and 0.5."
            )
        if least > keep:
            raise PolicyError(f"'keep' is from {least} to {keep}: give the smaller one as 'min'.")
    if keep_tokens is not None and not (type(keep_tokens) is int and keep_tokens >= 1):
        raise PolicyError(f"'keep_tokens' is {keep_tokens}: it must be a whole number >= 1.")
    if policy.recent is not None and not (_is_number(policy.recent) and 0 <= policy.recent <= 1):
        raise PolicyError(
            f"'recent' is {policy.recent}: it must be in [0, 1], the share of what is kept that "
            "goes to the last tokens."
        )


def _check_choice(name: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise PolicyError(f"'{name}' is {value!r}: choose one of {', '.join(allowed)}.")


def _check_full(policy: CachePolicy) -> None:
    fixed = policy.keep in (None, 1) and policy.keep_min is None
    if not fixed or policy.keep_tokens is not None:
        raise PolicyError("'full' keeps everything: leave out 'keep' and 'keep_tokens'.")
    if policy.merge not in (None, "none") or policy.text not in (None, "none"):
        raise PolicyError("'full' evicts nothing: leave out 'merge' and 'text'.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
