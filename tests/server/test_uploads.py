"""Uploads as the openai client sends them, and forms that are refused."""

from typing import Any

import httpx
import openai
import pytest

from server.settings import Settings
from tests.server.media.pdfs import pdf
from tests.server.requests import says, serving
from tests.server.test_errors import check_error
from tests.server.test_files import FILES

pytestmark = [pytest.mark.anyio, pytest.mark.extras]

PDF = pdf()
GOOD: dict[str, Any] = {"data": {"purpose": "user_data"}, "files": {"file": ("a.pdf", PDF)}}


def official(client: httpx.AsyncClient, key: str = "any") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url="http://test/v1", api_key=key, http_client=client)


async def test_the_official_client_uploads_lists_reads_and_deletes() -> None:
    async with serving(Settings(model="fake", api_keys="one,two"), says) as (client, _, app):
        files, others = official(client, "one").files, official(client, "two").files
        sent = await files.create(
            file=("Ünvoice.pdf", PDF),
            purpose="user_data",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert (sent.filename, sent.bytes, sent.purpose) == ("Ünvoice.pdf", len(PDF), "user_data")
        assert sent.expires_at == sent.created_at + 3600
        assert await files.retrieve(sent.id) == sent
        assert [each.id async for each in files.list(limit=1)] == [sent.id]
        assert (await files.content(sent.id)).content == PDF
        assert [each.id async for each in others.list()] == []
        with pytest.raises(openai.NotFoundError):
            await others.content(sent.id)
        series = (await client.get("/metrics", headers={"authorization": "Bearer one"})).text
        assert f"lookm_files_held_bytes {app.state.services.files.held_bytes}" in series
        assert (await files.delete(sent.id)).deleted
        assert app.state.services.files.held_bytes == 0


BAD: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("no file", {"files": {"purpose": (None, "user_data")}}, "missing_required_parameter", "file"),
    ("no purpose", GOOD | {"data": {}}, "missing_required_parameter", "purpose"),
    ("other purpose", GOOD | {"data": {"purpose": "batch"}}, "invalid_value", "purpose"),
    ("text as file", {"files": {"purpose": (None, "user_data"), "file": (None, "x")}},
     "invalid_type", "file"),
    ("no bytes", GOOD | {"files": {"file": ("a.pdf", b"")}}, "invalid_file", "file"),
    ("too large", GOOD | {"files": {"file": ("a.pdf", b"x" * 5001)}}, "file_too_large", "file"),
    ("far too large", GOOD | {"files": {"file": ("a.pdf", b"x" * 10**6)}},
     "file_too_large", "file"),
    ("two files", GOOD | {"files": [("file", ("a", b"x")), ("file", ("b", b"x"))]},
     "invalid_value", None),
    ("unknown field", GOOD | {"data": {"purpose": "user_data", "x": "y"}},
     "unknown_parameter", "x"),
    ("brief life", GOOD | {"data": {"purpose": "user_data", "expires_after[seconds]": "60"}},
     "invalid_value", "expires_after"),
    ("no form", {"content": b"hello", "headers": {"content-type": "multipart/form-data"}},
     "invalid_value", None),
    ("cut form", {"content": b"--b\r\nhello",
                  "headers": {"content-type": "multipart/form-data; boundary=b"}},
     "missing_required_parameter", "file"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "code", "param"), [pytest.param(*bad[1:], id=bad[0]) for bad in BAD]
)
async def test_bad_uploads_are_refused_and_the_next_is_kept(
    form: dict[str, Any], code: str, param: str | None
) -> None:
    async with serving(Settings(model="fake", max_file_bytes=5000), says) as (client, _, app):
        check_error(await client.post(FILES, **form), 400, code, param)
        assert app.state.services.files.held_bytes == 0
        assert (await client.post(FILES, **GOOD)).status_code == 200


async def test_what_is_no_form_is_another_media_type() -> None:
    async with serving(Settings(model="fake"), says) as (client, _, _app):
        response = await client.post(FILES, json={"purpose": "user_data"})
        check_error(response, 415, "unsupported_media_type", None)


async def test_a_store_that_is_off_takes_no_file() -> None:
    async with serving(Settings(model="fake", file_memory=0), says) as (client, _, _app):
        check_error(await client.post(FILES, **GOOD), 400, "file_too_large", "file")


@pytest.mark.parametrize("origin", ["https://a.example", "http://test"])
async def test_a_page_from_here_or_from_a_listed_origin_may_upload(origin: str) -> None:
    settings = Settings(model="fake", cors_origins="https://a.example")
    async with serving(settings, says) as (client, _, _app):
        response = await client.post(FILES, headers={"origin": origin}, **GOOD)
        assert response.status_code == 200
