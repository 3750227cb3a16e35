"""The load generator, for any OpenAI-compatible server: `lookm bench`.

Read `workload` (what is sent), `arrivals` (when), `generator` (the run), `client` (one request),
`measures` and `report` (what came of it), `compare` (two runs).
"""
