"""The alert rules fire when they should: Prometheus' own checker says so."""

import shutil
import subprocess

import pytest

from tests.docker.files import DOCKER, alerts

PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", "--syntax-only", "prometheus.yml"),
        ("check", "rules", "prometheus/alerts.yml"),
        ("test", "rules", "prometheus/alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(command: tuple[str, ...]) -> None:
    assert PROMTOOL is not None
    run = subprocess.run([PROMTOOL, *command], cwd=DOCKER, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_alert_has_a_rule_test_and_says_what_to_do() -> None:
    rule_tests = (DOCKER / "prometheus" / "alerts_test.yml").read_text()
    page = (DOCKER / "README.md").read_text()
    for name in alerts():
        assert f"alertname: {name}\n        exp_alerts" in rule_tests, (
            f"{name} is never seen firing"
        )
        assert f"| `{name}` |" in page
