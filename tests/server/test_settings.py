"""Settings: sizes, precedence, and that flags, variables and fields are the same list."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from server import cli
from server.settings import Settings, unknown_variables
from server.sizes import format_size, parse_size

SAMPLES: dict[str, tuple[str, Any]] = {
    "dtype": ("float32", "float32"),
    "quantization": ("int8", "int8"),
    "kv_cache_dtype": ("int8", "int8"),
    "attention": ("reference", "reference"),
    "graphs": ("off", "off"),
    "log_level": ("debug", "debug"),
    "reuse": ("kept", "kept"),
    "api_keys": ("a, b", 2),
    "generation_config": ("none", "none"),
    "model_alias": ("a=b:look-m@0.2, c=b", ("a=b:look-m@0.2", "c=b")),
    "root_path": ("/lookm/", "/lookm"),
    "cors_origins": ("https://a, https://b", ("https://a", "https://b")),
    "log_format": ("json", "json"),
    "media_allowed_hosts": ("a.example", ("a.example",)),
}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *[("2GiB", 2**31), ("512MiB", 2**29), ("1.5g", 1_500_000_000), ("64", 64)],
        *[("10 kB", 10_000), ("2TiB", 2**41)],
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "2PiB", "1e9", "GiB"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="2GiB"):
        parse_size(text)


def test_sizes_are_shown_with_three_digits() -> None:
    assert [format_size(n) for n in (5, 2**20, 1536 * 2**20)] == ["5 B", "1 MiB", "1.5 GiB"]
    large = (1000, 1024 * 1024 - 1, 1000 * 2**20, 1800 * 2**30, 3000 * 2**40)
    assert [format_size(n) for n in large] == [
        "1000 B", "1 MiB", "1000 MiB", "1.76 TiB", "3000 TiB"
    ]  # fmt: skip


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_a_variable_and_a_flag(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = str(Settings.model_fields[name].annotation)
    on = Settings.model_fields[name].get_default() is True
    fallback = (
        "0"
        if on
        else "1"
        if "bool" in kind
        else "7"
        if "int" in kind or "float" in kind
        else "text"
    )
    given, _ = SAMPLES.get(name, (fallback, None))
    monkeypatch.setenv(f"LOOKM_{name.upper()}", given)
    assert getattr(Settings(), name) != Settings.model_fields[name].get_default()
    monkeypatch.delenv(f"LOOKM_{name.upper()}")
    seen: list[Settings] = []
    monkeypatch.setattr("server.launch.launch", lambda settings: seen.append(settings) or 0)
    switch = cli.flag_of(name).replace("--", "--no-", 1) if on else cli.flag_of(name)
    flag = [switch] if "bool" in kind else [cli.flag_of(name), given]
    result = CliRunner().invoke(cli.app, ["serve", *flag])
    assert result.exit_code == 0, result.output
    assert getattr(seen[0], name) != Settings.model_fields[name].get_default()


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKM_PORT", "1234")
    seen: list[Settings] = []
    monkeypatch.setattr("server.launch.launch", lambda settings: seen.append(settings) or 0)
    CliRunner().invoke(cli.app, ["serve", "--port", "4321"])
    CliRunner().invoke(cli.app, ["serve"])
    assert [settings.port for settings in seen] == [4321, 1234]


def test_defaults_are_the_documented_ones() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 8000, "llava-demo")
    assert (settings.kv_cache, settings.kv_cache_memory) == ("full", None)
    assert not settings.cors_origins
    assert not settings.keys()


def test_a_wrong_setting_is_one_line_that_names_flag_and_variable() -> None:
    result = CliRunner().invoke(cli.app, ["serve", "--kv-cache-memory", "much"])
    assert result.exit_code == 2
    line = "error: --kv-cache-memory (LOOKM_KV_CACHE_MEMORY): give a size such as 2GiB or 512MiB"
    assert result.output.strip() == line


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(Settings(api_keys="secret"))


def test_help_shows_every_flag() -> None:
    shown = CliRunner().invoke(cli.app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    for name in Settings.model_fields:
        assert cli.flag_of(name) in plain


@pytest.mark.parametrize("text", [b"", b"\n \n", b"# only a comment\n", b"\xff\xfe"])
def test_a_key_file_without_a_key_does_not_open_the_server(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(text)
    with pytest.raises(ValueError, match="--api-key-file"):
        Settings(api_key_file=path).keys()
    with pytest.raises(ValidationError, match="no key in it"):
        Settings(api_keys=" , ")


def test_a_comment_in_the_key_file_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# of the first team\none\n\n two \n")
    assert Settings(api_key_file=path).keys() == ("one", "two")


def test_a_misspelt_variable_is_found_with_what_was_meant() -> None:
    meant = {"LOOKM_API_KEY": "LOOKM_API_KEYS", "lookm_prot": "LOOKM_PORT", "LOOKM_ZZZ": None}
    given = dict.fromkeys((*meant, "LOOKM_PORT", "lookm_host", "PATH"), "x")
    assert unknown_variables(given) == meant
