"""`make docs`: writes every generated document again."""

import subprocess
import sys
from pathlib import Path

from docs.generate import detail, docker, evidence, families, fields, scale
from server.bench import readme_tables

DASHBOARDS = Path(__file__).parents[2] / "docker" / "grafana" / "build.py"


def main() -> None:
    """Dashboards first: the operating page lists their panels."""
    subprocess.run([sys.executable, str(DASHBOARDS)], check=True)
    docker.write()
    fields.write()
    families.write()
    readme_tables.main([])
    evidence.write()
    scale.write()
    detail.write()


if __name__ == "__main__":
    main()
