"""What compression costs in answers: the same questions under many cache policies.

python -m lookm.eval --kv-cache full look-m@0.2 snapkv@0.2 --images 2 8 --count 20
"""
