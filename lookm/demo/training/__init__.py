"""How the bundled model was made: `python -m lookm.demo.training.train`. Not in the wheel.

Read `train` (the loop), `chat` (the conversations it sees), `batches`, `forward`, `vision`.
"""
