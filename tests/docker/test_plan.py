"""`lookm plan` says what the engine would decide, from a config alone."""

from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

from lookm.config import EngineConfig
from lookm.memory import make_plan
from lookm.models.adapter import Adapter
from server.cli import app
from server.sizing import FRACTIONS, Conversation, fits, plan, pool_bytes, read_shape
from tests.docker.reading import DOCKER
from tests.lookm.models.toys import TOYS

# Families whose configs, as they come, have the shape of a real model.
REAL = ("LlavaConfig", "LlavaNextConfig", "Qwen2_5_VLConfig", "Qwen3VLConfig", "Gemma3Config",
        "PaliGemmaConfig", "Idefics3Config", "InternVLConfig", "Mistral3Config")  # fmt: skip


@pytest.mark.parametrize("name", TOYS)
def test_the_config_tells_what_the_loaded_model_caches(name: str, tmp_path: Path) -> None:
    toy = TOYS[name]
    toy.config().save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path), "float32")
    engine_plan = make_plan(
        EngineConfig(kv_cache_bytes=2**22), Adapter(toy.model(), toy.row), model_path=""
    )
    assert shape.page_bytes == engine_plan.page_bytes
    assert shape.kv_bytes_per_token == engine_plan.kv_bytes_per_token
    assert shape.max_context_tokens == engine_plan.max_context_tokens


@pytest.mark.parametrize("name", REAL)
def test_weights_are_estimated_within_six_per_cent(name: str, tmp_path: Path) -> None:
    config = getattr(transformers, name)()
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    config.save_pretrained(tmp_path)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert read_shape(str(tmp_path)).num_parameters == pytest.approx(counted, rel=0.06)


def llava_7b(folder: Path) -> None:
    """The config of llava-hf/llava-1.5-7b-hf, as far as sizes go."""
    config = transformers.LlavaConfig(dtype="float16")
    config.text_config.max_position_embeddings = 4096
    config.text_config.vocab_size = 32064
    config.save_pretrained(folder)


def test_llava_7b_is_the_known_arithmetic(tmp_path: Path) -> None:
    llava_7b(tmp_path)
    shape = read_shape(str(tmp_path))
    assert shape.kv_bytes_per_token == 32 * 32 * 128 * 2 * 2
    pool = pool_bytes(24 * 2**30, shape.weight_bytes)
    assert pool == int(0.85 * (24 * 2**30 - shape.weight_bytes))
    rows = fits(shape, pool, Conversation(2048, 256))
    for keep, row in zip(FRACTIONS, rows, strict=True):
        tokens = -(-(int(2048 * keep) + 256) // 16) * 16
        assert row.bytes_each == tokens * shape.kv_bytes_per_token
        assert row.num_conversations == pool // shape.page_bytes // (tokens // 16 * 32)


def test_the_operating_page_shows_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (DOCKER / "README.md").read_text()
    shown = page[page.index("$ lookm plan") :]
    command, _, printed = shown[: shown.index("```")].partition("\n")
    flags = command.split()[2:]
    llava_7b(tmp_path / flags[flags.index("--model") + 1])
    assert CliRunner().invoke(app, flags).output == printed


def test_the_command_prints_a_row_for_each_fraction() -> None:
    run = CliRunner().invoke(app, ["plan", "--gpu-memory", "1GiB"])
    assert run.exit_code == 0
    assert "KV cache    6 KiB a token" in run.output
    assert [line.split()[0] for line in run.output.splitlines() if "%" in line] == [
        f"{keep:.0%}" for keep in FRACTIONS
    ]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--model", "nonsense"), "no model directory"),
        (("--gpu-memory", "5MiB"), "take a bigger GPU"),
        (("--gpu-memory", "much"), "give a size"),
        (("--prompt-tokens", "9000"), "smaller --prompt-tokens"),
        (("--dtype", "int3"), "choose auto"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(flags: tuple[str, ...], told: str) -> None:
    run = CliRunner().invoke(app, ["plan", *flags])
    assert run.exit_code == 2
    assert told in run.output
    assert run.output.count("\n") == 1


def test_given_weights_replace_the_estimate() -> None:
    assert any("weights     1 GiB" in line for line in plan("llava-demo", "2GiB", "1GiB"))
