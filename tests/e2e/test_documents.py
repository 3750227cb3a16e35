"""The documents' programs about a PDF, run as they are written, in a folder that has one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_readme import ADDRESS, ROOT, blocks
from tests.server.media.pdfs import Page, pdf
from tests.server.process import ServerProcess

pytestmark = [pytest.mark.e2e, pytest.mark.extras]

PAGE = (ROOT / "docs" / "documents.md").read_text(encoding="utf-8")
ASKING, UPLOADING = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "report.pdf").write_bytes(pdf([Page(), Page(rotate=90)]))
    return tmp_path


def printed(program: str, server: ServerProcess, folder: Path) -> str:
    assert ADDRESS in program
    command = [sys.executable, "-W", "ignore", "-c", program.replace(ADDRESS, server.url)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_program_of_the_readme_is_answered(demo_server: ServerProcess, folder: Path) -> None:
    (program,) = blocks("Documents", "python")
    assert "Image 2" in printed(program, demo_server, folder)


def test_the_programs_of_the_page_about_documents_are_answered(
    demo_server: ServerProcess, folder: Path
) -> None:
    answer = 'client.chat.completions.create(model="llava-demo", messages=[{"role": "user", '
    asked = f'print({answer}"content": [part]}}]).usage.prompt_tokens)'
    uploading = UPLOADING.replace("client.files.delete", f"{asked}\nclient.files.delete")
    told, tokens, by_id = printed(ASKING + uploading, demo_server, folder).splitlines()
    assert "Image 1" in told
    assert int(tokens) > int(by_id) > 2 * 64, "two pages, with and without a question"
