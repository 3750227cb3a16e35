"""The GPU grid: `python -m lookm.bench.gpu`. Read `__main__`, then `sections`."""
