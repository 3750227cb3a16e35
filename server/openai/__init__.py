"""OpenAI's API in front of the engine.

    routes  ->  schemas (what may be asked)  ->  translate (asked -> Request)
            ->  stream | collect (TokenEvents -> answer)

Reading order: `schemas`, `translate`, `stream`, `routes`. Importing this package imports nothing.
"""
