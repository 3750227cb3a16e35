"""`python -m server` and the `lookm` command.

A server that is told to stop while it still imports leaves with status 0, so the signals come
first and the command line, which takes a second to import, after them.
"""

import contextlib
import os
import sys

from lookm.threads import sleep_while_waiting
from server import signals


def main() -> None:
    """Run the command line."""
    serves = sys.argv[1:2] == ["serve"]
    with signals.handled(signals.leave_at_once) if serves else contextlib.nullcontext():
        sleep_while_waiting()
        from server.cli import app

        try:
            app()
        except SystemExit as leaving:
            if serves:
                _leave(leaving)
            raise


def _leave(leaving: SystemExit) -> None:
    """End now: threads that still prepare something for nobody are not waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(leaving.code if isinstance(leaving.code, int) else 0)


if __name__ == "__main__":
    main()
