"""The text suite: what compression costs a real language model on real texts.

The first 1,024 tokens of a text are the prompt, the next 48 are scored one by one as if the model
had said them: the negative log-likelihood of each in nats, and whether the likeliest next token is
the one at full cache. All of the prompt but its first 8 and last 40 tokens counts as image, so that
presets about images may evict it. Texts are small excerpts (`texts/SOURCES.md`), or a folder's own.

    {"kind": "text", ..., "model", "split", "prompt_tokens", "answer_tokens", "texts": [name],
     "rows": [{"policy", "kept_ratio", "nll": [nats a token, a text each], "agrees": [share]}]}

Rows keep equal numbers of tokens at an equal budget, which `kept_ratio` shows. Knows policies and
the language model; nothing of engines.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lookm import policy as policies
from lookm.attention import REFERENCE
from lookm.errors import ConfigError
from lookm.eval.questions import FULL
from lookm.eval.store import code_digest
from lookm.look import PromptLook
from lookm.policy import PRESETS, Preset, PromptPolicy, View, resolve
from lookm.types import CachePolicy, Needs

if TYPE_CHECKING:
    from lookm.models.language import LanguageModel, PromptRows, Rows

TEXTS = Path(__file__).parent / "texts"
SPLITS = ("held-out", "development")
KEEPS = (0.1, 0.2, 0.35, 0.5)
PROMPT_TOKENS, ANSWER_TOKENS = 1024, 48
FIRST, LAST = 8, 40  # tokens at the two ends that count as text
TOGETHER = 4  # caches that are followed side by side


@dataclass(frozen=True, slots=True)
class Mark:
    """One text under one policy. `kept` is the share of the prompt's rows that were held."""

    text: str
    policy: str
    kept: float
    nll: float
    agrees: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a text: the prompt, and after it what is scored."""

    prompt: int = PROMPT_TOKENS
    answer: int = ANSWER_TOKENS


def all_policies(keeps: Sequence[float] = KEEPS) -> list[str]:
    """Every preset at every budget, `full` first."""
    methods = [method for method in PRESETS if method != FULL]
    return [FULL, *(f"{method}@{keep:g}" for keep in keeps for method in methods)]


def read_texts(folder: Path) -> dict[str, str]:
    """Name -> text of every `*.txt`. Raises `ConfigError` where there is none."""
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}
    if not found:
        raise ConfigError(f"no texts (*.txt) in {folder}")
    return found


def study(
    model: "LanguageModel",
    texts: Mapping[str, str],
    asked: Sequence[str],
    lengths: Lengths = Lengths(),
    presets: Mapping[str, Preset] = PRESETS,
    saved: Path | None = None,
) -> Iterator[Mark]:
    """Every text under every policy. What `saved` (JSON lines) has of this run is not done again.

    Raises `ConfigError` for a text that is too short.
    """
    settings = f"{model.name} {lengths} {code_digest()} "
    for name, text in texts.items():
        key = hashlib.sha256((settings + text).encode()).hexdigest()[:16]
        known = {mark.policy: mark for mark in _saved(saved, key)}
        missing = [policy for policy in asked if policy not in known]
        if missing:
            print(f"{name}: {len(missing)} policies", file=sys.stderr)
            for mark in _of_text(model, name, text, missing, lengths, presets):
                known[mark.policy] = mark
                if saved is not None:
                    with saved.open("a") as file:
                        file.write(json.dumps({"key": key, **asdict(mark)}) + "\n")
        yield from (known[policy] for policy in asked)


def report(marks: Sequence[Mark], asked: Sequence[str], about: dict[str, Any]) -> dict[str, Any]:
    """The schema above."""
    texts = list(dict.fromkeys(mark.text for mark in marks))
    rows = []
    for policy in asked:
        found = [mark for mark in marks if mark.policy == policy]
        row: dict[str, Any] = {"policy": policy}
        row["kept_ratio"] = round(sum(mark.kept for mark in found) / len(found), 4)
        row["nll"] = [round(mark.nll, 4) for mark in found]
        row["agrees"] = [round(mark.agrees, 4) for mark in found]
        rows.append(row)
    return {"kind": "text", **about, "texts": texts, "rows": rows}


def _of_text(
    model: "LanguageModel",
    name: str,
    text: str,
    asked: Sequence[str],
    lengths: Lengths,
    presets: Mapping[str, Preset],
) -> Iterator[Mark]:
    ids = model.encode(text)[: lengths.prompt + lengths.answer]
    if len(ids) < lengths.prompt + lengths.answer:
        raise ConfigError(f"{name} has {len(ids)} tokens: {lengths.prompt + lengths.answer} needed")
    ids, after = ids[: lengths.prompt], torch.tensor(ids[lengths.prompt :])
    prompt = model.prefill(ids)
    whole: list[Rows] = [(rows.k_KTD, rows.v_KTD) for rows in prompt.layers]
    full_AV = _logits(model, prompt, after, [whole], lengths)[0]
    is_image_T, num_layers = marked(lengths.prompt), len(prompt.layers)
    recipes = [resolve(read(each), presets) for each in asked]
    opened = [PromptPolicy(recipe, is_image_T, num_layers) for recipe in recipes]
    views = views_by_window(prompt, is_image_T, opened)
    for start in range(0, len(asked), TOGETHER):
        some = asked[start : start + TOGETHER]
        caches = [
            compressed(views[policy.needs.window], policy)
            for policy in opened[start : start + TOGETHER]
        ]
        logits_BAV = _logits(model, prompt, after, caches, lengths)
        for policy, cache, logits_AV in zip(some, caches, logits_BAV, strict=True):
            held = sum(key.shape[1] for key, _ in cache) / len(cache) / lengths.prompt
            nll_A = torch.nn.functional.cross_entropy(logits_AV, after, reduction="none")
            same_A = logits_AV.argmax(dim=1) == full_AV.argmax(dim=1)
            yield Mark(name, policy, held, float(nll_A.mean()), float(same_A.double().mean()))


def _logits(
    model: "LanguageModel",
    prompt: "PromptRows",
    after: torch.Tensor,
    caches: Sequence[Sequence["Rows"]],
    lengths: Lengths,
) -> torch.Tensor:
    """Logits of each of the scored tokens, `[B, A, V]`; the first follow from the prompt itself."""
    first_B1V = prompt.next_V.expand(len(caches), 1, -1)
    later_BAV = model.follow(after[:-1].tolist(), caches, lengths.prompt)
    return torch.cat((first_B1V, later_BAV), dim=1)


def marked(num_tokens: int) -> torch.Tensor:
    """Which tokens of a prompt count as image: all but the first 8 and the last 40, bool `[T]`."""
    place_T = torch.arange(num_tokens)
    return (place_T >= FIRST) & (place_T < num_tokens - LAST)


@torch.no_grad()
def compressed(views: Sequence[View], policy: PromptPolicy) -> list["Rows"]:
    """What each layer keeps."""
    found = (policies.compress(view, policy) for view in views)
    return [(kept.key, kept.value) for kept in found]


@torch.no_grad()
def views_by_window(
    prompt: "PromptRows", is_image_T: torch.Tensor, opened: Sequence[PromptPolicy]
) -> dict[int, list[View]]:
    """All layers as policies of a window may look at them, with what any of those asks for."""
    found = {}
    for window in {policy.needs.window for policy in opened}:
        asked = [policy for policy in opened if policy.needs.window == window]
        needs = Needs(window=window)
        for name in ("sums", "squares", "density", "entropy", "queries"):
            needs = replace(needs, **{name: any(getattr(each.needs, name) for each in asked)})
        seen = PromptPolicy(asked[0].recipe, is_image_T, len(prompt.layers))
        seen.needs = needs
        look = PromptLook(seen, is_image_T, num_layers=len(prompt.layers), backend=REFERENCE)
        views = []
        for rows in prompt.layers:
            one = look.layer(rows.layer, rows.scale)
            one.observe(rows.q_HTD, rows.k_KTD)
            views.append(one.view(rows.q_HTD, rows.k_KTD, rows.v_KTD))
        found[window] = views
    return found


def read(policy: str) -> CachePolicy:
    """`METHOD@FRACTION`, of whatever table of presets."""
    method, at, keep = policy.partition("@")
    return CachePolicy(method, keep=float(keep)) if at else CachePolicy(method)


def _saved(path: Path | None, key: str) -> Iterator[Mark]:
    if path is None or not path.exists():
        return
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        if fields.pop("key") == key:
            yield Mark(**fields)
