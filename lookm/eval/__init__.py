"""What compression costs in answers: the same questions under many cache policies.

    lookm eval --policies full look-m@0.2 snapkv@0.2 --out runs/first
    lookm eval --suite milebench --data MileBench --url http://127.0.0.1:8000 --out runs/miles

`questions` are drawn by `demo` or read by `milebench`; `local` or `remote` answers them; `run`
keeps every answer in `store`; `scores` counts, `report` and `page` show. Read them in that order.
"""
