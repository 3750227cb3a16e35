"""Files by id: who sees them, when they go, and how they are listed."""

import pytest

from server.file_store import OVERHEAD_BYTES, FileStore, StoredFile
from server.settings import Settings
from tests.server.requests import CHAT, chat, png, says, serving
from tests.server.test_errors import check_error

pytestmark = pytest.mark.anyio

FILES = "/v1/files"


def put(store: FileStore, owner: str, size: int = 0, lifetime_s: int | None = None) -> StoredFile:
    return store.add(owner, b"x" * size, "a.pdf", "user_data", lifetime_s)


def file(file_id: str) -> dict[str, object]:
    return {"type": "file", "file": {"file_id": file_id}}


def test_a_file_is_seen_by_its_owner_alone() -> None:
    store = FileStore(2**20)
    mine = put(store, "me", 3)
    assert store.get("me", mine.id) is mine
    assert store.get("you", mine.id) is None
    assert not store.delete("you", mine.id)
    assert store.delete("me", mine.id)
    assert not store.delete("me", mine.id)
    assert store.held_bytes == 0


def test_where_there_is_no_room_the_largest_owner_loses_what_it_used_least() -> None:
    store = FileStore(10 * OVERHEAD_BYTES)
    (small,) = [put(store, "small")]
    many = [put(store, "many") for _ in range(9)]
    store.get("many", many[0].id)
    newest = put(store, "small")
    left = [each for each in many if store.get("many", each.id)]
    assert left == [many[0], *many[2:]]
    assert store.listed("small") == [small, newest]
    assert store.held_bytes <= store.max_bytes


def test_a_file_as_large_as_the_store_is_kept_and_all_others_go() -> None:
    store = FileStore(10 * OVERHEAD_BYTES)
    others = [put(store, owner) for owner in "aab"]
    assert store.fits(9 * OVERHEAD_BYTES)
    assert not store.fits(9 * OVERHEAD_BYTES + 1)
    large = put(store, "a", 9 * OVERHEAD_BYTES)
    assert store.get("a", large.id) is large
    assert not any(store.get(owner, each.id) for owner in "ab" for each in others)


def test_a_file_expires_when_it_should() -> None:
    now_s = 1000.0
    store = FileStore(2**20, lambda: now_s)
    brief, lasting = put(store, "me", lifetime_s=10), put(store, "me")
    assert (brief.created_at, brief.expires_at, lasting.expires_at) == (1000, 1010, None)
    now_s = 1010.0
    assert store.get("me", brief.id) is None
    assert store.listed("me") == [lasting]
    assert store.held_bytes == 2 * OVERHEAD_BYTES
    put(store, "you")
    assert store.held_bytes == 2 * OVERHEAD_BYTES, "its room is free when it is asked for"


async def test_files_are_listed_in_pages_as_they_are_asked_for() -> None:
    async with serving(Settings(model="fake"), says) as (client, _, app):
        store = app.state.services.files
        ids = [put(store, "", n).id for n in range(5)]
        store.add("", b"x", "b.png", "vision")
        listed = (await client.get(FILES, params={"purpose": "user_data"})).json()
        assert [each["id"] for each in listed["data"]] == ids[::-1]
        assert (listed["object"], listed["has_more"]) == ("list", False)
        found = {"order": "asc", "limit": "2", "after": ids[0]}
        listed = (await client.get(FILES, params=found)).json()
        assert [each["bytes"] for each in listed["data"]] == [1, 2]
        assert (listed["first_id"], listed["last_id"]) == (ids[1], ids[2])
        assert listed["has_more"]
        for param, value in (("order", "up"), ("limit", "0"), ("limit", "x"), ("limit", "10001")):
            response = await client.get(FILES, params={param: value})
            check_error(response, 400, "invalid_value", param)
        check_error(await client.get(FILES, params={"after": "x"}), 404, "file_not_found", "after")


async def test_a_file_is_read_and_deleted_by_the_key_it_came_with_and_by_no_other() -> None:
    mine, other = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    async with serving(Settings(model="fake", api_keys="one,two"), says) as (client, engine, app):
        await client.get(FILES, headers=mine)
        (digest,) = {key_digest("one")}
        kept = app.state.services.files.add(digest, png(), "a.png", "vision")
        for path in (f"{FILES}/{kept.id}", f"{FILES}/{kept.id}/content"):
            check_error(await client.get(path, headers=other), 404, "file_not_found", "file_id")
            check_error(await client.get(path), 401, "invalid_api_key", None)
        param = "messages[0].content[0].file.file_id"
        refused = await client.post(CHAT, json=chat(file(kept.id)), headers=other)
        check_error(refused, 404, "file_not_found", param)
        refused = await client.delete(f"{FILES}/{kept.id}", headers=other)
        check_error(refused, 404, "file_not_found", "file_id")

        content = await client.get(f"{FILES}/{kept.id}/content", headers=mine)
        assert content.content == png()
        assert content.headers["content-type"] == "application/octet-stream"
        assert content.headers["x-content-type-options"] == "nosniff"
        shown = (await client.get(f"{FILES}/{kept.id}", headers=mine)).json()
        assert (shown["filename"], shown["purpose"]) == ("a.png", "vision")
        answer = await client.post(CHAT, json=chat(file(kept.id)), headers=mine)
        assert answer.status_code == 200
        assert len(engine.requests[0].images) == 1
        gone = await client.delete(f"{FILES}/{kept.id}", headers=mine)
        assert gone.json() == {"id": kept.id, "object": "file", "deleted": True}
        refused = await client.post(CHAT, json=chat(file(kept.id)), headers=mine)
        check_error(refused, 404, "file_not_found", param)


async def test_without_the_extra_an_upload_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.openai.request.upload.find_spec", lambda _: None)
    form = {"data": {"purpose": "user_data"}, "files": {"file": ("a.pdf", b"x")}}
    async with serving(Settings(model="fake"), says) as (client, _, _app):
        response = await client.post(FILES, **form)
        check_error(response, 400, "unsupported_file", "file")
        assert "pip install 'lookm-server[pdf]'" in response.json()["error"]["message"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://test:81"])
async def test_a_page_from_elsewhere_may_not_upload(origin: str) -> None:
    form = {"data": {"purpose": "user_data"}, "files": {"file": ("a.pdf", b"x")}}
    async with serving(Settings(model="fake"), says) as (client, _, app):
        response = await client.post(FILES, headers={"origin": origin}, **form)
        check_error(response, 415, "unsupported_media_type", None)
        assert app.state.services.files.held_bytes == 0


def key_digest(key: str) -> str:
    import hashlib

    return hashlib.sha256(key.encode()).hexdigest()
