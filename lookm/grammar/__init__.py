"""Structured answers (JSON, JSON between markers, regexes) as masks over each step's logits.

A grammar comes from a client, so neither its compiler nor the making of its masks is trusted with
the engine's time or memory. Both happen in processes of their own, under the system's limits:

    engine                 grammar process             one process a structure, forked from it
    client.Grammars ─────► process.GrammarProcess ───► child.serve
        ▲                    who compiles when           compiles (`matcher`, `source`), then
        │                                                follows the answers that use it
        └───── masks, one after each token ──────────────┘

Only `matcher` and `source` know llguidance. Only `client` knows torch, and none knows sampling.
"""
