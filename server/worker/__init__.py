"""The engine in its own process, and the asyncio client the API process talks to it with.

    client  ->  launch (spawns)  ->  process (the worker's main loop)  ->  lookm.engine | fake
       \\____ channel (one zmq PAIR socket each side) carries wire (msgspec messages) ____/

Reading order: `wire`, `process`, `client`. Importing this package imports nothing.
"""
