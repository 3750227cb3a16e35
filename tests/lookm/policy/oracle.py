"""LOOK-M and its rivals, written slowly: float64, one head and one token at a time, whole matrices.

Shares nothing with `lookm.policy`. Written from the formulas in the papers, for the tests only.
"""

import math
from typing import Any

import torch

MERGE_OF = {
    "look-m": "pivot",
    "look-m-average": "average",
    "look-m-weighted": "weighted",
    "meda": "average",
    "d2o": "threshold",
    "look-m-plus": "centroid",
}
RECENT_OF = {
    "vl-cache": 0.1,
    **dict.fromkeys(
        (
            "look-m-plus",
            "aircache",
            "madakv",
            "mixkv",
            "pyramidkv",
            "prefixkv",
            "tova",
            "keydiff",
            "knorm",
            "expected-attention",
        ),
        0.0,
    ),
}
PROTECTS = {"look-m", "look-m-average", "look-m-weighted", "look-m-evict", "meda", "aircache"}
ABOUT_IMAGES = {"look-m-plus", "madakv"}
SINKS = {"streaming", "d2o", "expected-attention"}
POOLS = {"snapkv", "pyramidkv", "mixkv"}


def attention(q_HTD: Any, k_KTD: Any, scale: Any = None) -> Any:
    """Causal attention weights, float64 `[K, G, T, T]`."""
    q, k = q_HTD.double(), k_KTD.double()
    num_tokens, head_size = q.shape[1:]
    q = q.reshape(k.shape[0], -1, num_tokens, head_size)
    logits = torch.einsum("kgid,kjd->kgij", q, k) * (scale or head_size**-0.5)
    future = torch.ones(num_tokens, num_tokens).triu(1).bool()
    return logits.masked_fill(future, -math.inf).softmax(-1)


def score(method: Any, weights: Any) -> Any:
    """Scores of one KV head from its group's attention `[G, T, T]`, as a list of T floats."""
    num_tokens = weights.shape[-1]
    found = []
    for j in range(num_tokens):
        column = weights[:, j:, j].flatten()
        if method == "mean-h2o":
            found.append(float(column.sum()) / (num_tokens - j))
        elif method == "roco":
            found.append((float(column.mean()), float(column.var(unbiased=False))))
        elif method == "streaming":
            found.append(float(j))
        else:
            found.append(float(column.sum()))
    if method == "roco":
        protected = sorted(range(num_tokens), key=lambda j: -found[j][1])
        protected = set(protected[: math.ceil(num_tokens / 10)])
        found = [(j in protected, mean) for j, (mean, _) in enumerate(found)]
    if method in POOLS:
        rows = weights[:, -32:].sum((0, 1)).tolist()
        before = max(num_tokens - 32, 0)
        padded = [0.0, 0.0, *rows[:before], 0.0, 0.0]
        found = [sum(padded[j : j + 5]) / 5 for j in range(before)] + rows[before:]
    return found


def all_scores(method: Any, rows: Any, weights: Any, scale: Any = None) -> Any:
    """Scores of every KV head, a list of lists; `weights` `[K, G, T, T]`."""
    q, k, v, is_image = (tensor.double() for tensor in rows)
    num_heads, num_tokens, size = k.shape
    if method == "tova":
        found = [float(weights[:, :, -1, j].sum()) for j in range(num_tokens)]
        return [found] * num_heads
    if method == "prefixkv":
        return [[float(weights[..., j].sum()) for j in range(num_tokens)]] * num_heads
    if method == "vl-cache":
        images = is_image.nonzero().flatten().tolist()
        first = min(images[-1] + 1, num_tokens - 1) if images else max(0, num_tokens - 32)
        return [weights[head, :, first:].sum((0, 1)).tolist() for head in range(num_heads)]
    if method == "look-m-plus":
        images = is_image.nonzero().flatten().tolist()
        first = min(images[-1] + 1, num_tokens - 1) if images else max(0, num_tokens - 32)
        found = []
        for head in range(num_heads):
            asked = weights[head, :, first:].sum((0, 1)).tolist()
            text = [j for j in range(num_tokens) if not is_image[j]]
            text.sort(key=lambda j: -asked[j])
            phase = 0.7548776662466927 * head
            places = {j: (0.6180339887498949 * i + phase) % 1 for i, j in enumerate(images)}
            line = dict(zip(text, (i / 0.75 for i in range(len(text))), strict=True))
            for i, j in enumerate(sorted(images, key=places.get)):
                line[j] = min(i / 0.25, len(text) + i)
            found.append([-line[j] for j in range(num_tokens)])
        return found
    if method == "aircache":
        group = len(q) // num_heads
        return [
            observed(q[head * group : (head + 1) * group], k[head], is_image, scale)
            for head in range(num_heads)
        ]
    if method == "madakv":
        return [divided(psi(weights[head]), is_image) for head in range(num_heads)]
    if method == "mixkv":
        found = []
        for head in range(num_heads):
            attended = score(method, weights[head])
            found.append(mixed(attended, k[head].tolist(), v[head].tolist()))
        return found
    if method == "knorm":
        lengths = [[math.sqrt(float(key @ key)) for key in k[head]] for head in range(num_heads)]
        return [[-round(4096 * math.log2(length)) for length in head] for head in lengths]
    if method == "keydiff":
        found = []
        for head in range(num_heads):
            unit = torch.stack([key / key.norm() for key in k[head]])
            anchor = sum(unit) / num_tokens
            found.append([-float(key @ anchor) / float(anchor.norm()) for key in unit])
        return found
    if method == "expected-attention":
        group, scale = len(q) // num_heads, scale or size**-0.5
        found = []
        for head in range(num_heads):
            share = torch.zeros(num_tokens, dtype=torch.float64)
            for query in q[head * group : (head + 1) * group]:
                seen = query[4:] if num_tokens > 4 else query
                mean = seen.mean(0)
                covariance = torch.zeros(size, size, dtype=torch.float64)
                for row in seen:
                    covariance += torch.outer(row - mean, row - mean) / len(seen)
                z = [
                    math.exp(
                        scale * float(mean @ key) + scale**2 / 2 * float(key @ covariance @ key)
                    )
                    for key in k[head]
                ]
                share += torch.tensor(z) / sum(z) / group
            found.append((share * v[head].norm(dim=1)).tolist())
        return found
    return [score(method, weights[head]) for head in range(num_heads)]


def counts(method: Any, num_tokens: Any, keep: Any, keep_tokens: Any, recent: Any) -> Any:
    """(N, M) as the design states them."""
    recent = RECENT_OF.get(method, 0.5) if recent is None else recent
    if keep_tokens is not None:
        last = round(keep_tokens * recent)
        first = keep_tokens - last
    else:
        last, first = int(num_tokens * (keep * recent)), int(num_tokens * (keep * (1 - recent)))
        if keep == 1:
            first = num_tokens - last
    if first + last == 0:
        first, last = (0, 1) if recent else (1, 0)
    if method == "streaming":
        sinks = min(4, first + last - 1)
        first, last = sinks, first + last - sinks
    last = min(last, num_tokens)
    return min(first, num_tokens - last), last


def kept(method: Any, text: Any, scores: Any, is_image: Any, important: Any, recent: Any) -> Any:
    """Positions kept in one head, ascending."""
    num_tokens = len(is_image)
    candidates = range(num_tokens - recent)

    def tier(j: Any) -> Any:
        if text == "protect" and not is_image[j]:
            return 0
        if method in SINKS and j < 4:
            return 1 + j  # the first token of a sequence is the strongest sink
        if method in POOLS and j >= num_tokens - 32:
            return 5
        if text == "prior" and not is_image[j]:
            return 6
        return 7

    best = sorted(candidates, key=lambda j: scores[j], reverse=True)  # stable: earlier first
    best = sorted(best, key=tier)
    if text == "protect":
        important = max(important, sum(not is_image[j] for j in candidates))
    return sorted(best[:important]) + list(range(num_tokens - recent, num_tokens))


def merged(key: Any, value: Any, positions: Any, how: Any) -> Any:
    """One head's kept keys and values `[S, D]`, float64, after merging, and which rows received."""
    key, value = key.double(), value.double()
    received = {row: [] for row in range(len(positions))}
    unit = key / key.norm(dim=1, keepdim=True)
    nearest = []
    for j in sorted(set(range(len(key))) - set(positions)):
        cosine = unit[positions] @ unit[j]
        row = int(cosine.argmax())
        nearest.append((j, row, float(cosine[row])))
    if how == "threshold":
        mean = sum(cosine for *_, cosine in nearest) / len(nearest)
        nearest = [pair for pair in nearest if pair[2] >= mean]
    for j, row, cosine in nearest:
        received[row].append((j, cosine))
    out = []
    for source in (key, value):
        rows = []
        for row, position in enumerate(positions):
            centre, many = source[position], received[row] if how != "none" else []
            total = centre.clone()
            if how == "threshold":
                share = math.e + sum(math.exp(cosine) for _, cosine in many)
                total = math.e / share * centre
                total += sum(math.exp(cosine) / share * source[j] for j, cosine in many)
                rows.append(total)
                continue
            for j, cosine in many:
                if how == "average":
                    total += source[j]
                elif how == "pivot":
                    total += (source[j] + centre) / 2
                else:
                    total += cosine * source[j]
            rows.append(total / (len(many) + 1))
        out.append(torch.stack(rows))
    numbers = [len(received[row]) if how != "none" else 0 for row in range(len(positions))]
    return out[0], out[1], numbers


def centroids(key: Any, value: Any, is_image: Any, positions: Any) -> Any:
    """One head's rows under `look-m-plus`'s merge, float64, and how many each received.

    Clusters of one modality around the kept rows, chosen twice; the mean value, and the mean key's
    direction at the mean length.
    """
    key, value = key.double(), value.double()
    evicted = sorted(set(range(len(key))) - set(positions))
    centres = key[positions]
    for _ in range(2):
        members = {row: [position] for row, position in enumerate(positions)}
        for j in evicted:
            best, target = 0.0, None
            for row, position in enumerate(positions):
                cosine = float(centres[row] @ key[j] / centres[row].norm() / key[j].norm())
                if is_image[position] == is_image[j] and cosine > best:
                    best, target = cosine, row
            if target is not None:
                members[target].append(j)
        centres = torch.stack([key[rows].mean(0) for rows in members.values()])
    keys = [
        centre / centre.norm() * key[rows].norm(dim=1).mean()
        for centre, rows in zip(centres, members.values(), strict=True)
    ]
    values = torch.stack([value[rows].mean(0) for rows in members.values()])
    return torch.stack(keys), values, [len(rows) - 1 for rows in members.values()]


def softmax(numbers: Any) -> Any:
    largest = max(numbers)
    powers = [math.exp(number - largest) for number in numbers]
    return [power / sum(powers) for power in powers]


def dot(one: Any, other: Any) -> Any:
    return sum(a * b for a, b in zip(one, other, strict=True))


def observed(q: Any, k: Any, is_image: Any, scale: Any) -> Any:
    """AirCache (2503.23956), equations of the elite window: one KV head's scores.

    `q` `[G, T, D]`, `k` `[T, D]`.
    """
    q, k = q.tolist(), k.tolist()
    num_tokens, scale = len(k), scale or len(k[0]) ** -0.5
    images = [j for j in range(num_tokens) if is_image[j]]
    text = [j for j in range(num_tokens) if not is_image[j]]
    text = [j for j in text if not images or j > images[-1]] or text or [num_tokens - 1]
    share = dict.fromkeys(text, 0.0)
    for query in q:
        logits = [scale * dot(query[text[-1]], k[j]) for j in text]
        for j, weight in zip(text, softmax(logits), strict=True):
            share[j] += weight / len(q)
    elite = [j for j in text if share[j] >= 0.9 * max(share.values())]
    found = [0.0] * num_tokens
    for query in q:
        for i in elite:
            seen = [j for j in range(i + 1) if is_image[j] or j in elite]
            given = softmax([scale * dot(query[i], k[j]) for j in seen])
            for j, weight in zip(seen, given, strict=True):
                found[j] += weight / len(elite) / len(q)
    return found


def skewness(numbers: Any) -> Any:
    """The adjusted Fisher-Pearson coefficient."""
    n, mean = len(numbers), sum(numbers) / len(numbers)
    std = math.sqrt(sum((x - mean) ** 2 for x in numbers) / (n - 1))
    return n / ((n - 1) * (n - 2)) * sum(((x - mean) / std) ** 3 for x in numbers)


def psi(weights: Any) -> Any:
    """MadaKV (2506.15724): what the proxies, the last 32 tokens, look at; `weights` `[G, T, T]`."""
    return weights[:, -32:].sum((0, 1)).tolist()


def divided(looked: Any, is_image: Any) -> Any:
    """MadaKV: an order in which any first n tokens have round(n w_t / (w_t + w_v)) of text.

    Built one token at a time: the modality that is furthest behind its share is next.
    """
    num_tokens = len(looked)
    rest = [
        sorted(
            (j for j in range(num_tokens) if bool(is_image[j]) == image), key=lambda j: -looked[j]
        )
        for image in (False, True)
    ]
    weight = [sum(looked[j] for j in half) for half in rest]
    taken, found = [0, 0], [0.0] * num_tokens
    for place in range(num_tokens):
        behind = [weight[m] / sum(weight) * (place + 1) - taken[m] for m in (0, 1)]
        one = 0 if (behind[0] >= 0.5 or not rest[1]) and rest[0] else 1
        taken[one] += 1
        found[rest[one].pop(0)] = -float(place)
    return found


def needed(looked: Any, is_image: Any, share: Any = 0.9) -> Any:
    """MadaKV: the fewest tokens of each modality that hold this share of what it is given."""
    number = 0
    for image in (False, True):
        half = sorted(
            (x for x, of in zip(looked, is_image, strict=True) if bool(of) == image), reverse=True
        )
        held, total = 0.0, sum(half)
        while half and held < share * total:
            held += half.pop(0)
            number += 1
    return number


def mixed(attended: Any, keys: Any, values: Any) -> Any:
    """MixKV (2510.20707) over `snapkv`: one head's scores."""
    num_tokens, before = len(keys), max(len(keys) - 32, 0)
    if not before:
        return attended
    unit = [[x / math.sqrt(dot(key, key)) for x in key] for key in keys]
    pairs = [dot(unit[i], unit[j]) for i in range(num_tokens) for j in range(num_tokens) if i != j]
    redundancy = sum(pairs) / len(pairs)
    mean = [sum(column) / num_tokens for column in zip(*unit, strict=True)]
    external = attended[:before]

    def scaled(numbers: Any) -> Any:
        low, high = min(numbers), max(numbers)
        found = [(x - low) / (high - low) if high > low else 0.0 for x in numbers]
        ratio = sum(external) / sum(found) if sum(found) else 0.0
        return [x * ratio for x in found]

    internal = scaled([math.sqrt(dot(value, value)) for value in values[:before]])
    unlike = scaled([-dot(u, mean) for u in unit[:before]])
    return [
        (1 - redundancy) * (external[j] + internal[j]) + redundancy * unlike[j]
        for j in range(before)
    ] + attended[before:]
