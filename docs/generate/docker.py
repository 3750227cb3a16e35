"""What docker/README.md and .env.example say of the code: settings, series and panels."""

import json
from collections.abc import Iterator
from pathlib import Path

from docs.generate.marked import between
from server.cli import flag_of
from server.series import SERIES
from server.settings import Settings
from server.sizes import format_size

DOCKER = Path(__file__).parents[2] / "docker"
PAGE = DOCKER / "README.md"
ENV_EXAMPLE = DOCKER.parent / ".env.example"

COMPOSE_ONLY = """\
# Settings of docker compose: copy to .env, uncomment what you change. Made by make docs.

# --- of compose ---
# Another build of torch: PyTorch's own CPU index (pytorch.org, "Get started", CPU) makes the image
# gigabytes smaller. Leave empty for a GPU.
# TORCH_INDEX_URL=
# What some processors insist on: torchvision (OneVision, Qwen-VL, InternVL, Mistral); SmolVLM:
# torchvision num2words.
# EXTRA_PACKAGES=
# How long docker waits for running answers at stop: more than LOOKM_DRAIN_TIMEOUT_S by 15 s.
# STOP_GRACE=45s
# The key Prometheus reads /metrics with: one of LOOKM_API_KEYS, where there are any.
# SCRAPE_KEY=
# PROMETHEUS_PORT=9090
# GRAFANA_PORT=3000
# GRAFANA_PASSWORD=admin
# For gated models of the hub.
# HF_TOKEN=

# --- of the server (LOOKM_HOST and LOOKM_PORT: where compose publishes it) ---
"""


def env_example() -> str:
    """Every setting, commented out, at its default."""
    lines = []
    for name, info in Settings.model_fields.items():
        lines += [f"# {info.description}", f"# LOOKM_{name.upper()}={shown(info.get_default())}"]
    return COMPOSE_ONLY + "\n".join(lines) + "\n"


def settings() -> Iterator[str]:
    """A row for each setting."""
    yield "| Variable | Flag | Default | |"
    yield "|---|---|---|---|"
    for name, info in Settings.model_fields.items():
        default = shown(info.get_default())
        value = f"`{default}`" if default else ""
        yield f"| `LOOKM_{name.upper()}` | `{flag_of(name)}` | {value} | {info.description} |"


def series() -> Iterator[str]:
    """A row for each series."""
    yield "| Series | Kind | Labels | |"
    yield "|---|---|---|---|"
    for one in SERIES:
        labels = ", ".join(f"`{label}`" for label in one.labels)
        yield f"| `{one.name}` | {one.kind} | {labels} | {one.help} |"


def panels() -> Iterator[str]:
    """A row for each panel of the committed dashboards."""
    for path in sorted((DOCKER / "grafana" / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        yield f"**{board['title']}**. {board['description']}"
        yield ""
        yield "| Panel | |"
        yield "|---|---|"
        for panel in board["panels"]:
            title = f"*{panel['title']}*" if panel["type"] == "row" else panel["title"]
            yield f"| {title} | {panel.get('description', '')} |"
        yield ""


def shown(default: object) -> str:
    """A default as it is typed."""
    if default in (None, ()):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int) and default >= 2**20:
        return format_size(default).replace(" ", "")
    return str(default)


PARTS = {"settings": settings, "series": series, "panels": panels}


def page(before: str) -> str:
    """The page with its generated parts written again."""
    for name, lines in PARTS.items():
        before = between(before, name, "\n".join(lines()))
    return before


def write() -> None:
    """Write the page and the example of an environment file."""
    ENV_EXAMPLE.write_text(env_example())
    PAGE.write_text(page(PAGE.read_text()))
