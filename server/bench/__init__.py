"""Measuring a running server from outside, as its clients see it: `lookm bench`.

A run goes `workload` (what is asked), `arrivals` (when), `generator` and `client` (asking),
`measures` (numbers), `report`, `compare` and `pages` (telling). `capacity` is the experiment on top
of it; `own` and `peers` measure the engine and other servers; `results` writes README's tables.
"""
