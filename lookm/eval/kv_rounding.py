"""How keys are best rounded to int8: a scale for each row of a head, or for each channel of a page.

    python -m lookm.eval.kv_rounding              # the demo model, held-out questions, a minute

Every way sees the same prompts: their rows are rounded when they are kept, the answer that the
unrounded cache gives is read again token by token, and the next token's distribution compared
(Kullback-Leibler, and how often the same token comes first). Values are rounded by rows throughout.

`outlier`: one channel of every key is made larger by a constant, as the biases of some models do
(that many times a key's root mean square), rounded, and made smaller again. Attention cares for
differences alone, so that nothing but the rounding differs.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from lookm.compressed_generate import compressing
from lookm.eval import demo
from lookm.kv_format import pack, unpack
from lookm.models.loading import find, load_model
from lookm.models.processor import Processor

PAGE_TOKENS, ANSWER_TOKENS, CPU = 16, 24, torch.device("cpu")
Round = Callable[[torch.Tensor], torch.Tensor]  # of `[1, K, S, D]`


def by_rows(rows: torch.Tensor, stored: torch.dtype = torch.int8) -> torch.Tensor:
    """As the pool does: a scale for each row of a head."""
    return unpack(*pack(rows, stored), rows.dtype)


def by_channels(rows: torch.Tensor) -> torch.Tensor:
    """A scale for each channel of a head, over the rows of a page (as KIVI, 2402.02750)."""
    pages = torch.split(rows, PAGE_TOKENS, dim=2)
    return torch.cat([by_rows(page.transpose(2, 3)).transpose(2, 3) for page in pages], dim=2)


def by_fp8(rows: torch.Tensor) -> torch.Tensor:
    """A scale for each row, float8_e4m3fn."""
    return by_rows(rows, torch.float8_e4m3fn)


WAYS: dict[str, Round] = {"rows": by_rows, "channels": by_channels, "rows, fp8": by_fp8}


@dataclass
class Found:
    """What one way did to the next tokens."""

    divergence: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)


def with_outlier(round_rows: Round, size: float) -> Round:
    """`round_rows` of keys whose first channel is `size` root mean squares larger, in float32."""

    def rounded(keys: torch.Tensor) -> torch.Tensor:
        moved = keys.float().clone()
        shift = size * moved.square().mean().sqrt()
        moved[..., 0] += shift
        moved = round_rows(moved)
        moved[..., 0] -= shift
        return moved.to(keys.dtype)

    return rounded if size else round_rows


@torch.no_grad()
def study(policy: str, count: int, seed: int, outliers: Sequence[float]) -> dict[str, Found]:
    """Every way, on `count` questions of each family about 4 images."""
    checkpoint = find("llava-demo")
    processor = Processor.of(checkpoint, name="llava-demo")
    model, _ = load_model(str(checkpoint.folder), dtype=torch.float32, device=CPU)
    ways = {
        f"{name}{f', outlier {size:g}' if size else ''}": with_outlier(way, size)
        for size in outliers
        for name, way in WAYS.items()
    }
    found = {name: Found() for name in ways}
    for question in demo.questions(list(demo.FAMILIES), [4], count, seed):
        images = [processor.image(each, str(n)) for n, each in enumerate(question.pictures())]
        ids = torch.tensor([processor.prompt(question.messages, images)])
        pixels = torch.cat([torch.as_tensor(image.tensors["pixel_values"]) for image in images])
        with compressing(model, policy, ids[0] == model.config.image_token_id) as cache:
            first = model(input_ids=ids, pixel_values=pixels, past_key_values=cache).logits[0, -1]
            kept = [(layer.keys, layer.values, layer.seen) for layer in cache.layers]
            tokens, exact = _answer(model, cache, first)
            for name, way in ways.items():
                for layer, (keys, values, seen) in zip(cache.layers, kept, strict=True):
                    layer.keys, layer.values, layer.seen = way(keys), by_rows(values), seen
                _, rounded = _answer(model, cache, first, tokens)
                _compare(found[name], exact, rounded)
    return found


def _answer(
    model: Any, cache: Any, first_V: torch.Tensor, tokens: Sequence[int] | None = None
) -> tuple[list[int], torch.Tensor]:
    """The greedy answer, or the one given, and the logits after each of its tokens."""
    said, logits, next_V = [], [], first_V
    for step in range(ANSWER_TOKENS if tokens is None else len(tokens)):
        said.append(int(next_V.argmax()) if tokens is None else tokens[step])
        out = model(input_ids=torch.tensor([said[-1:]]), past_key_values=cache)
        next_V = out.logits[0, -1]
        logits.append(next_V)
        if said[-1] == model.config.get_text_config().eos_token_id:
            break
    return said, torch.stack(logits)


def _compare(found: Found, exact_TV: torch.Tensor, rounded_TV: torch.Tensor) -> None:
    wanted, got = exact_TV.log_softmax(-1), rounded_TV.log_softmax(-1)
    found.divergence += (wanted.exp() * (wanted - got)).sum(-1).tolist()
    found.same += (wanted.argmax(-1) == got.argmax(-1)).float().tolist()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lookm.eval.kv_rounding")
    parser.add_argument("--policies", nargs="+", default=["full", "look-m-plus@0.2"])
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--outliers", type=float, nargs="+", default=[0, 10, 100])
    options = parser.parse_args(arguments)
    print("| `kv_cache` | keys by | KL of the next token | other token first |")
    print("|---|---|---|---|")
    for policy in options.policies:
        for name, one in study(policy, options.count, options.seed, options.outliers).items():
            other = f"{1 - fmean(one.same):.2%} of {len(one.same):,}"
            print(f"| `{policy}` | {name} | {fmean(one.divergence):.1e} | {other} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
