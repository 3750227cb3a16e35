"""`python -m server` and the `lookm` command."""

from server.cli import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
