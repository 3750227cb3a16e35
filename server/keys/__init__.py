"""API keys: whose a request is, and how much that key may ask for.

    limits.py    a key's limits, and the small TOML file that they come from
    bucket.py    an allowance a minute, that fills up again
    account.py   one key: what is left to it, what the client is told of that
    book.py      every key that is accepted, read again while the server runs

Knows keys by digest and by the operator's name for them, never the keys themselves. Knows nothing
about HTTP but the headers' names, and nothing about engines.
"""
