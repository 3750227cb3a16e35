"""Each kernel alone at the model's shape: device time, and the rate against what it must move.

`bytes` is what the kernel cannot avoid reading and writing, `flops` its matrix products; the share
of the copy bandwidth says how near a memory-bound kernel is to its roofline.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from lookm.attention import Attention, Backend, choose
from lookm.bench.gpu.fixture import Lab
from lookm.bench.gpu.sections import Numbers
from lookm.pages import Pages
from lookm.types import Needs

PAGE_TOKENS = 16


@torch.inference_mode()
def kernels(lab: Lab) -> Numbers:
    """Decode at every batch, and the parts of a prefill that looks."""
    backend = choose("auto", lab.device, lab.dtype)
    found: Numbers = {"attention": backend.name}
    num_tokens = len(lab.prompt()[0])
    for batch in lab.scale.batches:
        for rows in (num_tokens, num_tokens // 5):
            found[f"decode x{batch}, {rows} rows"] = _decode(lab, backend.attention, batch, rows)
    for tokens in (num_tokens, len(lab.prompt(long=True)[0])):
        found |= _prefill(lab, backend, tokens)
    return found


@torch.inference_mode()
def linears(lab: Lab) -> Numbers:
    """The model's matrix products at decode's batches: the library's, and ours by the best tile."""
    shape = lab.shape
    size, wide = shape.hidden, (shape.heads + 2 * shape.kv_heads) * shape.hidden // shape.heads
    products = {
        "q, k, v": (wide, size),
        "o": (size, size),
        "gate, up": (2 * shape.intermediate, size),
        "down": (size, shape.intermediate),
        "logits": (shape.vocabulary, size),
    }
    found: Numbers = {}
    for name, (outputs, inputs) in products.items():
        weight = torch.randn(outputs, inputs, dtype=lab.dtype, device=lab.device)
        for rows in lab.scale.batches:
            x = torch.randn(rows, inputs, dtype=lab.dtype, device=lab.device)
            where = f"{name}: {outputs} x {inputs}, {rows} rows"
            found[where] = _rated(lab, functools.partial(F.linear, x, weight), moved=weight.nbytes)
            found[where] |= _own_linear(lab, x, weight)
    return found


def _own_linear(lab: Lab, x: torch.Tensor, weight: torch.Tensor) -> Numbers:
    """The fastest tile of our kernel, where it runs."""
    if lab.device.type != "cuda":
        return {}
    from lookm.attention.kernels.triton_linear import MAX_ROWS, TILES, linear

    if len(x) > MAX_ROWS:
        return {}
    spent_s = {
        tile: lab.kernel_seconds(functools.partial(linear, x, weight, None, tile)) for tile in TILES
    }
    best = min(spent_s, key=spent_s.__getitem__)
    return {"own_s": spent_s[best], "own_tile": f"{best.outputs} x {best.inputs}"}


def _decode(lab: Lab, attention: Attention, batch: int, rows: int) -> Numbers:
    shape, item = lab.shape, lab.dtype.itemsize
    size, pages = shape.hidden // shape.heads, -(-rows // PAGE_TOKENS)
    stored = (batch * pages, shape.kv_heads, PAGE_TOKENS, size)
    filled = Pages(*(torch.randn(stored, dtype=lab.dtype, device=lab.device) for _ in range(2)))
    q = torch.randn(batch, shape.heads, size, dtype=lab.dtype, device=lab.device)
    table = torch.randperm(batch * pages, device=lab.device).to(torch.int32).view(batch, pages)
    lengths = torch.full((batch,), rows, device=lab.device)
    moved = 2 * batch * rows * shape.kv_heads * size * item
    return _rated(
        lab, lambda: attention.decode(q, filled, table, lengths, scale=size**-0.5), moved=moved
    )


def _prefill(lab: Lab, backend: Backend, tokens: int) -> Numbers:
    shape, size = lab.shape, lab.shape.hidden // lab.shape.heads

    def noise(heads: int, rows: int) -> torch.Tensor:
        return torch.randn(heads, rows, size, dtype=lab.dtype, device=lab.device)

    q, k, v = (
        noise(shape.heads, tokens),
        noise(shape.kv_heads, tokens),
        noise(shape.kv_heads, tokens),
    )
    triangle = shape.heads * tokens * tokens * size  # two operations, half of the square

    def prefill(needs: Needs) -> Callable[[], Any]:
        return lambda: backend.attention.prefill(q, k, v, scale=size**-0.5, needs=needs)

    found = {
        f"prefill {tokens}": _rated(lab, prefill(Needs()), flops=2 * triangle),
        f"prefill with sums {tokens}": _rated(lab, prefill(Needs(sums=True)), flops=3 * triangle),
        f"prefill with window {tokens}": _rated(lab, prefill(Needs(window=32)), flops=2 * triangle),
    }
    merges = backend.merges
    if merges is None:
        return found
    num_kept = tokens // 5
    kept, evicted = noise(shape.kv_heads, num_kept), noise(shape.kv_heads, tokens - num_kept)
    products = 2 * shape.kv_heads * num_kept * (tokens - num_kept) * size
    found[f"nearest {tokens}"] = _rated(lab, lambda: merges.nearest(kept, evicted), flops=products)
    target = torch.randint(0, num_kept, evicted.shape[:2], device=lab.device)
    weight = torch.ones(evicted.shape[:2], device=lab.device)
    centre = torch.ones(kept.shape[:2], device=lab.device)
    found[f"combine {tokens}"] = _rated(
        lab,
        lambda: merges.combine([(kept, evicted)] * 2, target, weight, centre),
        moved=2 * (2 * kept.nbytes + evicted.nbytes),
    )
    return found


def _rated(lab: Lab, call: Callable[[], Any], *, moved: int = 0, flops: int = 0) -> Numbers:
    spent_s = lab.kernel_seconds(call)
    found: Numbers = {"seconds": spent_s}
    if moved:
        found |= {"bytes": moved, "bytes_per_s": moved / spent_s}
        if lab.bandwidth:
            found["share_of_bandwidth"] = moved / spent_s / lab.bandwidth
    if flops:
        found |= {"flops": flops, "flops_per_s": flops / spent_s}
    return found
