"""OpenAI's shapes: what a client may send (`requests`, `tools`), and what it gets (`answers`).

`fields` says how each field is treated, `strict` is the base of all requests. Knows shapes; knows
nothing about engines, or how a shape is filled.
"""
