"""What replaces transformers' modules by faster ones that compute the same.

Read `fuse` (norm, MLP, attention), then `onednn` (CPU), or `decoder_layer` and `matmul_choice`
(CUDA). `equivalence` is the trial that every replacement has to pass. Knows modules; knows
nothing about families, pages or policies.
"""
