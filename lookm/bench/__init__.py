"""The engine alone, measured: no HTTP, no processes.

`engine` is what compression costs and buys beside `generate()`, `gpu` the grid for a GPU.
`random_checkpoint` makes models of a real shape, `provenance` says where a number comes from.
"""
