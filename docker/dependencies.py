"""What the server needs, from `pyproject.toml`: one requirement a line, for pip."""

import sys
import tomllib

if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        print(*tomllib.load(file)["project"]["dependencies"], sep="\n")
