"""The GPU bench on a CPU, at toy size: its numbers mean nothing there, its code is the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lookm.bench.gpu import __main__ as gpu


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("gpu")
    return gpu.main(["--shape", "tiny", "--device", "cpu", "--out", str(out)]), out


def test_every_section_gives_numbers_in_one_call(tried: Any) -> None:
    status, out = tried
    sections = json.loads((out / "gpu.json").read_text())["sections"]
    assert status == 0
    assert set(sections) == set(gpu.SECTIONS)
    assert not [name for name, section in sections.items() if "error" in section]
    assert sections["equality"]["equal"]
    assert sections["capacity"]["gain"] > 3
    for batch in (1, 2, 4):
        assert sections["decode"][f"full x{batch}"]["kv_bytes"] > 0


def test_the_page_names_every_bar_and_where_it_comes_from(tried: Any) -> None:
    page = (tried[1] / "gpu.md").read_text()
    for bar in ("share of the roofline", "over generate()", "conversations", "prefill of"):
        assert bar in page
    assert "python -m lookm.bench.gpu --shape tiny --device cpu" in page


def test_a_section_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(lab: Any) -> None:
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setitem(gpu.SECTIONS, "generate", broken)
    arguments = ["--shape", "tiny", "--device", "cpu", "--out", str(tmp_path), "--sections"]
    assert gpu.main([*arguments, "generate", "capacity"]) == 1
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert sections["generate"]["error"] == "RuntimeError: out of luck"
    assert sections["capacity"]["gain"] > 3
    assert "out of luck" in capsys.readouterr().out


def test_sections_past_the_budget_are_named_not_begun(tmp_path: Path) -> None:
    arguments = ["--shape", "tiny", "--device", "cpu", "--out", str(tmp_path), "--budget-s", "0"]
    assert gpu.main([*arguments, "--sections", "capacity"]) == 1
    section = json.loads((tmp_path / "gpu.json").read_text())["sections"]["capacity"]
    assert section["error"].startswith("not begun")


def test_the_bench_imports_nothing_of_the_http_server() -> None:
    code = (
        "import sys, lookm.bench.gpu; "
        "print([m for m in ('fastapi', 'pydantic', 'httpx', 'zmq') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
