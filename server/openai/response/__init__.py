"""From the engine's `TokenEvent`s to the bytes of an answer.

Read `choices` (n answers as one), `stream` (whole answers and streams), `writers` (framing),
`chat_chunks` and `text_chunks` (one for each endpoint), `schemas` (the shapes). Knows nothing about
how a request was read.
"""
