"""Measuring a running server from outside, as its clients see it: `lookm bench`.

`load` is the generator, `capacity` the experiment on top of it; `transformers_serve` compares with
another server, `html` draws reports, `readme_tables` writes README's. The engine alone, without
HTTP, is measured by `lookm.bench`.
"""
