"""What one API key may ask for, and the small TOML file that says so.

    [default]                        # of keys that do not say, and those of --api-keys
    requests_per_minute = 600

    [keys.alice]                     # a name for logs and metrics
    key = "sk-..."                   # or sha256 = "..." of it, in hex
    requests_per_minute = 60
    tokens_per_minute = 200_000      # prompts, images included, and answers
    places = 8                       # as --max-running-per-key
    policies = ["look-m@0.3", "snapkv"]
    default_policy = "look-m@0.2"

A file that is wrong anywhere is refused as a whole, in one line that names the place and never
what a key is.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from lookm import policy
from lookm.errors import PolicyError
from lookm.types import CachePolicy

UNNAMED = "unnamed"  # keys of --api-keys and --api-key-file, in logs and metrics
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_FILE_BYTES = 2**22

MOST = 10**12  # of anything a minute

Count = Annotated[int, Field(ge=1, le=MOST, strict=True)]


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit of its own. `policies` are those it may ask for; empty: all."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    places: int | None = None
    policies: tuple[CachePolicy, ...] = ()
    default_policy: CachePolicy | None = None

    def allows(self, asked: CachePolicy) -> bool:
        """Whether it may keep that much in that way: a budget that is allowed is the most."""
        return not self.policies or any(_within(asked, most) for most in self.policies)

    def allowed(self) -> str:
        """The policies it may ask for, for a message."""
        return ", ".join(f"{_shown(each)!r}" for each in self.policies)


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """One key by the digest of it, the operator's name for it, and its limits."""

    name: str
    digest: bytes = field(repr=False)
    limits: Limits


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What the file says. `others`: of keys that it does not have."""

    keys: tuple[KeyLimits, ...] = ()
    others: Limits = NO_LIMITS

    @classmethod
    def read(cls, path: Path, server_policy: CachePolicy) -> Self:
        """The file; `server_policy` is where neither key nor request says. Raises `ValueError`."""
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
            if not (given := tomllib.loads(content.decode())):
                raise ValueError("there is nothing in it")  # as while somebody is writing it
            return cls._from(given, server_policy)
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except UnicodeDecodeError:
            reason = "not a text file"
        except tomllib.TOMLDecodeError as error:
            reason = f"no TOML: {error}"
        except ValueError as error:
            reason = str(error)
        one_line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in reason)
        raise ValueError(f"--key-limits {path}: {one_line}")

    @classmethod
    def _from(cls, given: Mapping[str, Any], server_policy: CachePolicy) -> Self:
        file = _validated(given)
        others = _limits(file.default, NO_LIMITS, server_policy, "default")
        keys: dict[bytes, KeyLimits] = {}
        for name, table in file.keys.items():
            place = f"keys.{name[:80]}"
            if not NAME.fullmatch(name) or name == UNNAMED:
                raise ValueError(f"{place}: a name is up to 64 letters, digits and '._-'")
            digest = _digest(table, place)
            if digest in keys:
                raise ValueError(f"{place}: the same key as that of {keys[digest].name}")
            keys[digest] = KeyLimits(name, digest, _limits(table, others, server_policy, place))
        return cls(tuple(keys.values()), others)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    places: Count | None = None
    policies: Annotated[list[str], Field(min_length=1)] | None = None
    default_policy: str | None = None


class _Key(_Table):
    key: SecretStr | None = None
    sha256: SecretStr | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    default: _Table = _Table()
    keys: dict[str, _Key] = {}


def digest_of(key: str) -> bytes:
    """What is known of a key."""
    return hashlib.sha256(key.encode()).digest()


def _validated(given: Mapping[str, Any]) -> _File:
    try:
        return _File.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:80] for part in first["loc"])
        raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None


def _digest(table: _Key, place: str) -> bytes:
    key = None if table.key is None else table.key.get_secret_value()
    digest = None if table.sha256 is None else table.sha256.get_secret_value()
    if (key is None) == (digest is None):
        raise ValueError(f"{place}: give one of key and sha256")
    if digest is not None:
        if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise ValueError(f"{place}.sha256: 64 hexadecimal digits")
        return bytes.fromhex(digest)
    assert key is not None
    if not key or not key.isascii() or any(c.isspace() or not c.isprintable() for c in key):
        raise ValueError(f"{place}.key: printable ASCII without white space")
    return digest_of(key)


def _limits(table: _Table, others: Limits, server_policy: CachePolicy, place: str) -> Limits:
    """What the table says, what it does not say as `others` have it."""
    allowed = others.policies
    if table.policies is not None:
        allowed = tuple(_policy(text, f"{place}.policies") for text in table.policies)
    default = others.default_policy
    if table.default_policy is not None:
        named = f"{place}.default_policy"
        default = policy.resolve(_policy(table.default_policy, named)).policy
    limits = Limits(
        requests_per_minute=table.requests_per_minute or others.requests_per_minute,
        tokens_per_minute=table.tokens_per_minute or others.tokens_per_minute,
        places=table.places or others.places,
        policies=allowed,
        default_policy=default,
    )
    if not limits.allows(default or server_policy):
        short = policy.to_string(default or server_policy)
        raise ValueError(f"{place}: policies leave out its default {short!r}: set default_policy")
    return limits


def _policy(text: str, place: str) -> CachePolicy:
    """As it is written: without a budget where it has none, which allows any."""
    try:
        parsed = policy.parse(text)
    except PolicyError as error:
        raise ValueError(f"{place}: {error}") from None
    return parsed if "@" in text else CachePolicy(parsed.method)


def _within(asked: CachePolicy, most: CachePolicy) -> bool:
    if asked.method != most.method:
        return False
    if most.keep is not None:
        return asked.keep is not None and asked.keep <= most.keep
    if most.keep_tokens is not None:
        return asked.keep_tokens is not None and asked.keep_tokens <= most.keep_tokens
    return True


def _shown(most: CachePolicy) -> str:
    no_budget = most.keep is None and most.keep_tokens is None
    return most.method if no_budget else policy.to_string(most)


def names(keys: KeyFile) -> Iterator[str]:
    """Every name that logs and metrics may show."""
    yield UNNAMED
    yield from (each.name for each in keys.keys)
