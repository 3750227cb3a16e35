"""Which release this is. Knows the distribution's metadata and nothing else."""

from importlib import metadata

DISTRIBUTION = "lookm-server"


def version() -> str:
    """The installed version, or `0+source` where the tree runs without being installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+source"
