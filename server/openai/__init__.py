"""OpenAI's API in front of the engine.

    routes ->  request/   bytes -> what may be sent -> the engine's `Request`
           ->  response/  `TokenEvent`s -> an answer, whole or as a stream
               tools/     calls of tools, shown to the model and read out of its text
               abort      a client that leaves, and the deadline

Importing this package imports nothing.
"""
