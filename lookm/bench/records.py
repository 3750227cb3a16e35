"""Measured runs on disk: JSON with the origin of its numbers. Writes no HTML, and knows no kind."""

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def save(report: Json, path: Path) -> None:
    """Write it as JSON."""
    write_text(path, json.dumps(_rounded(report), indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def read(path: Path, kind: str) -> Json:
    """Read a report. Raises `ValueError` where the file is not one of this kind."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(report, dict) or report.get("kind") != kind:
        raise ValueError(f"{path} is not a report of kind {kind!r}")
    return report


def _rounded(value: Any) -> Any:
    """Floats to six digits: microseconds are noise, and files are read by people."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return value
