"""LOOK-M and its rivals, written slowly: float64, one head and one token at a time, whole matrices.

Shares nothing with `lookm.policy`. Written from the formulas in the papers, for the tests only.
"""

import math

import torch

MERGE_OF = {"look-m": "pivot", "look-m-average": "average", "look-m-weighted": "weighted"}


def attention(q_HTD, k_KTD, scale=None):
    """Causal attention weights, float64 `[K, G, T, T]`."""
    q, k = q_HTD.double(), k_KTD.double()
    num_tokens, head_size = q.shape[1:]
    q = q.reshape(k.shape[0], -1, num_tokens, head_size)
    logits = torch.einsum("kgid,kjd->kgij", q, k) * (scale or head_size**-0.5)
    future = torch.ones(num_tokens, num_tokens).triu(1).bool()
    return logits.masked_fill(future, -math.inf).softmax(-1)


def score(method, weights):
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
    if method == "snapkv":
        rows = weights[:, -32:].sum((0, 1)).tolist()
        before = max(num_tokens - 32, 0)
        padded = [0.0, 0.0, *rows[:before], 0.0, 0.0]
        found = [sum(padded[j : j + 5]) / 5 for j in range(before)] + rows[before:]
    return found


def counts(method, num_tokens, keep, keep_tokens, recent):
    """(N, M) as the design states them."""
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


def kept(method, text, scores, is_image, important, recent):
    """Positions kept in one head, ascending."""
    num_tokens = len(is_image)
    candidates = range(num_tokens - recent)

    def tier(j):
        if text == "protect" and not is_image[j]:
            return 0
        if method == "streaming" and j < 4:
            return 1 + j  # the first token of a sequence is the strongest sink
        if method == "snapkv" and j >= num_tokens - 32:
            return 5
        if text == "prior" and not is_image[j]:
            return 6
        return 7

    best = sorted(candidates, key=lambda j: scores[j], reverse=True)  # stable: earlier first
    best = sorted(best, key=tier)
    if text == "protect":
        important = max(important, sum(not is_image[j] for j in candidates))
    return sorted(best[:important]) + list(range(num_tokens - recent, num_tokens))


def merged(key, value, positions, how):
    """One head's kept keys and values `[S, D]`, float64, after merging, and which rows received."""
    key, value = key.double(), value.double()
    received = {row: [] for row in range(len(positions))}
    unit = key / key.norm(dim=1, keepdim=True)
    for j in sorted(set(range(len(key))) - set(positions)):
        cosine = unit[positions] @ unit[j]
        row = int(cosine.argmax())
        received[row].append((j, float(cosine[row])))
    out = []
    for source in (key, value):
        rows = []
        for row, position in enumerate(positions):
            centre, many = source[position], received[row] if how != "none" else []
            total = centre.clone()
            for j, cosine in many:
                if how == "average":
                    total += source[j]
                elif how == "pivot":
                    total += (source[j] + centre) / 2
                else:
                    total += cosine * source[j]
            rows.append(total / (len(many) + 1))
        out.append(torch.stack(rows))
    return out[0], out[1], [bool(received[row]) and how != "none" for row in range(len(positions))]
