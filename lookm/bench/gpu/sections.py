"""The sections of the GPU bench: each a function of the lab that returns plain numbers.

Independent of one another, but for their order: `generate` needs the model before the engine has
taken its attention over, and every roofline needs `bandwidth`.
"""

import functools
import statistics
from dataclasses import replace
from typing import Any

import torch

from lookm.bench.gpu.fixture import Lab, free
from lookm.engine import Engine
from lookm.types import Request

Numbers = dict[str, Any]
POLICIES = ("full", "look-m@0.2")
CONVERSATION_POLICIES = ("full", "snapkv@0.2", "look-m@0.2", "look-m-plus@0.2")
DECODE_STEPS = 20
#: LOOK-M (2406.18139), table of decode speed: RTX 3090, LLaVA-1.5-7B, milliseconds per token.
PAPER_MS = {"full": 28.16, "look-m@0.2": 20.98}


@torch.inference_mode()
def bandwidth(lab: Lab) -> Numbers:
    """What the rooflines divide by: bytes per second of a copy, reads and writes counted, and
    operations per second of a large matrix product of random numbers.
    """
    cuda = lab.device.type == "cuda"
    size = 2**31 if cuda else 2**27
    source = torch.zeros(size, dtype=torch.uint8, device=lab.device)
    target = torch.empty_like(source)
    lab.bandwidth = 2 * size / lab.kernel_seconds(lambda: target.copy_(source), repeats=10)
    side = 8192 if cuda else 512
    left, right = (torch.randn(side, side, dtype=lab.dtype, device=lab.device) for _ in range(2))
    lab.flops = 2 * side**3 / lab.kernel_seconds(lambda: left @ right, repeats=10)
    return {"copy_bytes_per_s": lab.bandwidth, "product_flops_per_s": lab.flops}


@torch.inference_mode()
def generate(lab: Lab) -> Numbers:
    """Plain transformers: seconds per decode step alone and in a padded batch, full cache.

    The slope between two answer lengths, so that the prefill is left out.
    """
    num_tokens = len(lab.prompt()[0])
    found = {}
    for batch in (1, lab.scale.generate_batch):
        ids = torch.randint(5, lab.shape.vocabulary, (batch, num_tokens), device=lab.device)
        mask = torch.ones_like(ids)
        if batch > 1:
            mask[0, :8] = 0  # padding on the left, as batches of different prompts have it

        def answer(length: int, ids: Any = ids, mask: Any = mask) -> None:
            lab.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=length,
                min_new_tokens=length,
                do_sample=False,
                pad_token_id=0,
            )

        answer(2)
        short, long = 4, 4 + DECODE_STEPS
        spent = {n: lab.seconds(functools.partial(answer, n)) for n in (short, long)}
        found[str(batch)] = {"step_s": (spent[long] - spent[short]) / (long - short)}
        free(lab.device)
    return found


@torch.inference_mode()
def decode(lab: Lab) -> Numbers:
    """Step times at every batch and policy, beside bytes over bandwidth."""
    engine = lab.engine
    weights = weight_bytes(lab)
    found: Numbers = {"weight_bytes": weights}
    for policy in POLICIES:
        for batch in lab.scale.batches:
            requests = lab.requests(batch, policy, max_tokens=batch + DECODE_STEPS + 8)
            kv_bytes = fill(engine, requests)
            steps_s = [lab.seconds(engine.step) for _ in range(DECODE_STEPS)]
            replay = engine._runner._graphs
            assert replay is not None
            size = next(size for size in replay.sizes if size >= batch)
            replay_s = lab.kernel_seconds(replay._replays[size], repeats=10)
            drop(engine, requests)
            roofline_s = (weights + kv_bytes) / lab.bandwidth
            step_s = statistics.median(steps_s)
            found[f"{policy} x{batch}"] = {
                "kv_bytes": kv_bytes,
                "roofline_s": roofline_s,
                "device_s": replay_s,
                "device_share_of_roofline": roofline_s / replay_s,
                "step_s": step_s,
                "step_share_of_roofline": roofline_s / step_s,
                "tokens_per_s": batch / step_s,
            }
    for batch in lab.scale.batches:
        full, kept = (found[f"{policy} x{batch}"] for policy in POLICIES)
        found[f"gain x{batch}"] = kept["tokens_per_s"] / full["tokens_per_s"]
    found["paper_gain_x1"] = PAPER_MS["full"] / PAPER_MS["look-m@0.2"]
    return found


def capacity(lab: Lab) -> Numbers:
    """Conversations that fit into the pool, by the pages one really holds after its prefill."""
    engine = lab.engine
    found: Numbers = {"capacity_bytes": engine.plan.capacity_bytes}
    for policy in POLICIES:
        requests = lab.requests(1, policy)
        held = fill(engine, requests)
        drop(engine, requests)
        found[policy] = {"bytes": held, "conversations": engine.plan.capacity_bytes // held}
    full, kept = (found[policy]["conversations"] for policy in POLICIES)
    found["gain"] = kept / full if full else None
    return found


def prefill(lab: Lab) -> Numbers:
    """Seconds and peak memory of one prompt's prefill, policies in turns; images are encoded.

    `least_ratio` is what column sums cost at the speed of the large product: they need the final
    log-sum-exp of every row, so half of the attention matrix is multiplied a second time.
    """
    engine, found = lab.engine, {}
    for long in (False, True):
        name = str(len(lab.prompt(long=long)[0]))
        times: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        peaks: dict[str, int | None] = dict.fromkeys(POLICIES)
        for _ in range(lab.scale.repeats + 1):  # the first makes the image features
            for policy in POLICIES:
                (request,) = lab.requests(1, policy, long=long)
                engine.add(request)
                with lab.peak_bytes() as peak:
                    times[policy].append(lab.seconds(engine.step))
                peaks[policy] = peak[0] if peak else None
                drop(engine, [request])
        full, kept = (min(times[policy][1:]) for policy in POLICIES)
        found[name] = {
            "full_s": full,
            "look_s": kept,
            "ratio": kept / full,
            "least_ratio": _least_ratio(lab, int(name), full),
            "full_peak_bytes": peaks["full"],
            "look_peak_bytes": peaks["look-m@0.2"],
        }
    return found


def _least_ratio(lab: Lab, num_tokens: int, full_s: float) -> float | None:
    """Two operations for every query, key it sees and number of a head, in every layer."""
    flops = num_tokens**2 * lab.shape.hidden * lab.shape.layers
    return 1 + flops / lab.flops / full_s if lab.flops else None


def vision(lab: Lab) -> Numbers:
    """Images of one prompt through the vision tower: one by one, and together."""
    images = lab.prompt()[1]
    alone_s = min(
        lab.seconds(lambda: [lab.adapter.vision.encode_image(image) for image in images])
        for _ in range(lab.scale.repeats)
    )
    together_s = min(
        lab.seconds(lambda: lab.adapter.vision.encode_together(images))
        for _ in range(lab.scale.repeats)
    )
    return {"images": len(images), "one_by_one_s": alone_s, "together_s": together_s}


def conversation(lab: Lab) -> Numbers:
    """Seconds to the first token of a prompt without a store, with one, and of a second turn."""
    cuda = lab.device.type == "cuda"
    lab.close_engine()
    engine = lab.make_engine(
        prompt_store_bytes=2**35 if cuda else 2**28,
        **({"kv_cache_bytes": 8 * 2**30} if cuda else {}),
    )
    found: Numbers = {}
    for policy in CONVERSATION_POLICIES:
        spent: dict[str, list[float]] = {"alone_s": [], "turn_1_s": [], "turn_2_s": []}
        for repeat in range(lab.scale.repeats):
            (request,) = lab.requests(1, policy, max_tokens=8)
            first = replace(request, salt=f"{policy} {repeat}")
            more = tuple(range(5, 69))
            turns = {
                "alone_s": replace(first, reuse="none"),
                "turn_1_s": first,
                "turn_2_s": replace(first, prompt_ids=(*first.prompt_ids, *more)),
            }
            for name, turn in turns.items():
                spent[name].append(lab.seconds(functools.partial(fill, engine, [turn])))
                drop(engine, [turn])
        numbers = {name: min(times) for name, times in spent.items()}
        found[policy] = {**numbers, "turn_2_ratio": numbers["turn_2_s"] / numbers["turn_1_s"]}
    return found


def equality(lab: Lab) -> Numbers:
    """Whether recorded steps give the tokens of eager ones, at recorded sizes and padded ones."""
    lab.close_engine()
    size = {"kv_cache_bytes": 8 * 2**30} if lab.device.type == "cuda" else {}
    answers: dict[str, dict[str, list[int]]] = {}
    for graphs in ("on", "off"):
        engine = lab.make_engine(graphs=graphs, max_running=4, **size)
        answers[graphs] = {}
        for batch in (1, 2, 3, 4):
            for policy in POLICIES:
                for event in engine.generate(lab.requests(batch, policy, max_tokens=24)):
                    if event.token_id is not None:
                        key = f"{batch} {event.request_id}"
                        answers[graphs].setdefault(key, []).append(event.token_id)
        del engine
        free(lab.device)
    same = {key: answers["on"][key] == answers["off"][key] for key in answers["on"]}
    return {"equal": all(same.values()), "different": [key for key, ok in same.items() if not ok]}


def weight_bytes(lab: Lab) -> int:
    """What a decode step reads of the weights: all of the text model but the embedding table."""
    model = lab.model
    table = model.get_input_embeddings().weight
    text = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    return sum(weight.nbytes for weight in text if weight is not table)


def fill(engine: Engine, requests: list[Request]) -> int:
    """Run until every request decodes; returns the bytes of the pages they hold."""
    seen: set[str] = set()
    for request in requests:
        engine.add(request)
    while len(seen) < len(requests):
        seen |= {event.request_id for event in engine.step()}
    return engine.stats().used_bytes


def drop(engine: Engine, requests: list[Request]) -> None:
    for request in requests:
        engine.abort(request.id)
    engine.step()
