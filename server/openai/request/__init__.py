"""From the bytes of a body to the engine's `Request`.

Read `parse` (bytes into a model), `schemas` and `fields` (what may be sent), `translate` (the way),
`pictures` and `template` (what the model sees), `policies` and `sampling` (how it answers). Knows
nothing about answers.
"""
