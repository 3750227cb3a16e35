"""From the bytes of a body to the engine's `Request`.

Read `parse` (bytes into a model), `schemas` and `fields` (what may be sent), `translate` (the way),
`policies` and `sampling` (what was asked for). Knows nothing about answers.
"""
