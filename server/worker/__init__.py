"""The engine in its own process, and the asyncio client the API process talks to it with.

    client -> worker_life -> launch (spawns) -> process (its main loop) -> lookm.engine | fake
                  \\____ channel (a zmq PAIR socket each side) carries wire (messages) ____/
                  \\____ heartbeat (a pipe): what runs since when, judged by `hung` ____/

Reading order: `wire`, `process`, `worker_life`, `client`. Importing this package imports nothing.
"""
