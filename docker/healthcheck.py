"""Healthy where `/readyz` answers 200. Exit status 0 or 1, one line why; standard library only."""

import os
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 4


def main() -> int:
    """Ask the server in this container."""
    port = os.environ.get("LOOKM_PORT") or "8000"
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=TIMEOUT_S) as answer:
            print(answer.read(300).decode())
    except urllib.error.HTTPError as error:
        print(f"{error.code} {error.read(300).decode()}")
        return 1
    except OSError as error:
        print(f"no answer: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
