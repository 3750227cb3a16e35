"""What the documents say of the code, written from the code: `make docs`.

One file a document; `python -m docs.generate` runs them all, and tests compare what is committed.
"""
