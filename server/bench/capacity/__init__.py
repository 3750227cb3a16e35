"""How many conversations one KV pool serves together: `lookm bench capacity`.

`search` finds the number, `run` starts the server, `report` writes it down; `large_model` is the
arithmetic for a model that is too large for this machine.
"""
