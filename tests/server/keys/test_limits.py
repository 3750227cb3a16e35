"""The file of key limits: what it says, and that a mistake is told by its place, not by a key."""

import hashlib
from pathlib import Path

import pytest

from lookm import policy
from lookm.types import CachePolicy
from server.keys.limits import KeyFile, Limits, digest_of

FULL = CachePolicy("full")
SECRET = "sk-very-secret"


def read(tmp_path: Path, text: str, server_policy: CachePolicy = FULL) -> KeyFile:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    return KeyFile.read(path, server_policy)


def test_a_key_has_what_its_table_says_and_else_the_default(tmp_path: Path) -> None:
    file = read(
        tmp_path,
        f"""
        [default]
        requests_per_minute = 600
        places = 4
        [keys.alice]
        key = "{SECRET}"
        requests_per_minute = 60
        tokens_per_minute = 200_000
        policies = ["look-m@0.3", "full"]
        default_policy = "look-m@0.2"
        [keys.bob]
        sha256 = "{hashlib.sha256(b"other").hexdigest().upper()}"
        """,
    )
    alice, bob = file.keys
    assert (alice.name, alice.digest) == ("alice", digest_of(SECRET))
    assert (alice.limits.requests_per_minute, alice.limits.tokens_per_minute) == (60, 200_000)
    assert alice.limits.places == 4
    assert policy.to_string(alice.limits.default_policy) == "look-m@0.2"
    assert bob.digest == digest_of("other")
    assert bob.limits == file.others == Limits(requests_per_minute=600, places=4)
    assert SECRET not in repr(file)


@pytest.mark.parametrize(
    ("allowed", "asked", "is_allowed"),
    [
        ("look-m", "look-m@0.9", True),
        ("look-m", "look-m@512", True),
        ("look-m", "look-m-plus@0.1", False),
        ("look-m@0.3", "look-m@0.3", True),
        ("look-m@0.3", "look-m@0.1", True),
        ("look-m@0.3", "look-m@0.31", False),
        ("look-m@0.3", "look-m@64", False),
        ("look-m@512", "look-m@512", True),
        ("look-m@512", "look-m@513", False),
        ("look-m@512", "look-m@0.1", False),
        ("full", "full", True),
        ("look-m", "full", False),
        ("look-m@0.3", "look-m@0.1-0.3", True),
        ("look-m@0.3", "look-m@0.1-0.30000001", False),
        ("look-m@0.1-0.3", "look-m@0.05-0.3", True),
        ("look-m@0.1-0.3", "look-m@0.4", False),
        ("look-m@512", "look-m@0.1-0.3", False),
    ],
)
def test_a_budget_that_is_allowed_is_the_most(allowed: str, asked: str, is_allowed: bool) -> None:
    short = policy.parse(allowed)
    most = short if "@" in allowed else CachePolicy(short.method)
    assert Limits(policies=(most,)).allows(policy.resolve(asked).policy) is is_allowed
    assert Limits().allows(policy.resolve(asked).policy)


KEY = f'[keys.a]\nkey = "{SECRET}"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[keys.a\n", "no TOML"),
        ("", "there is nothing in it"),
        ("# nobody\n", "there is nothing in it"),
        (KEY + "requests_per_minute = 1" + "0" * 400, "keys.a.requests_per_minute: "),
        (KEY + "requests_per_minute = 0", "keys.a.requests_per_minute: "),
        (KEY + "requests_per_minute = 1.5", "keys.a.requests_per_minute: "),
        (KEY + "tokens_per_minute = true", "keys.a.tokens_per_minute: "),
        (KEY + "tokens_per_minute = '5'", "keys.a.tokens_per_minute: "),
        (KEY + "request_per_minute = 5", "keys.a.request_per_minute: "),
        (KEY + "policies = []", "keys.a.policies: "),
        (KEY + "policies = ['look']", "keys.a.policies: unknown method 'look'"),
        (KEY + "policies = ['look-m@2']", "keys.a.policies: cannot read '2'"),
        (KEY + "policies = ['look-m']", "policies leave out its default 'full'"),
        (KEY + "policies = ['look-m']\ndefault_policy = 'h2o'", "its default 'h2o@0.2'"),
        (KEY + "default_policy = 'full@0.5'", "keys.a.default_policy: "),
        (KEY + f'[keys.b]\nkey = "{SECRET}"', "keys.b: the same key as that of a"),
        ("[keys.a]\n", "keys.a: give one of key and sha256"),
        (KEY + "sha256 = 'ab'", "keys.a: give one of"),
        ("[keys.a]\nsha256 = 'ab'", "keys.a.sha256: 64 hex"),
        ("[keys.a]\nkey = ''", "keys.a.key: printable"),
        ("[keys.a]\nkey = 'a b'", "keys.a.key: printable"),
        ("[keys.a]\nkey = 5", "keys.a.key: "),
        ('[keys."a b"]\nkey = "x"', "keys.a b: a name is"),
        ('[keys."a\\nb"]\nkey = "x"', r"keys.a\nb: a name is"),
        ('[keys."a\\nb"]\nkey = 5', r"keys.a\nb.key: "),
        ("[keys.unnamed]\nkey = 'x'", "keys.unnamed: a name is"),
        ("[default]\nkey = 'x'", "default.key: "),
        ("[defaults]\nplaces = 1", "defaults: "),
        ("keys = 5", "keys: "),
    ],
)
def test_what_is_wrong_is_told_in_one_line_without_a_key(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(ValueError, match="--key-limits ") as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert told in message
    assert "\n" not in message
    assert SECRET not in message


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        KeyFile.read(tmp_path / "none.toml", FULL)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not a text file"):
        KeyFile.read(binary, FULL)
