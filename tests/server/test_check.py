"""`lookm check`: what it says is what a start would do."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lookm import Engine, EngineConfig
from server import check as checking
from server.check import check, lines
from server.cli import app
from tests.lookm.models.hub_shape import drop, edit, edit_weights, write
from tests.lookm.models.toys import TOYS


def ran(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *arguments])
    return result.exit_code, result.stdout


def test_the_card_of_the_demo_says_what_the_engine_decides() -> None:
    verdict = check("llava-demo", "cpu")
    assert verdict.works
    card = verdict.card
    assert card is not None
    engine = Engine.from_config(
        EngineConfig(model="llava-demo", device="cpu", kv_cache_bytes=2**24)
    )
    info = engine.info
    assert card.kv_bytes_per_token_16_bits == info.kv_bytes_per_token
    assert (card.layers, card.context_tokens) == (info.num_layers, info.max_context_tokens)
    assert card.dtype == info.dtype
    assert card.image_tokens["1920x1080"] == 64
    assert not card.refused_policies
    text = "\n".join(lines(verdict))
    assert text.startswith("llava-demo will work here (cpu): weights take 10.1 MiB of ")
    assert "6 KiB a token at 16 bits, 3.19 KiB at 8" in text


def test_it_ends_with_a_status_and_speaks_json() -> None:
    status, text = ran("llava-demo", "--device", "cpu", "--json")
    assert status == 0
    told = json.loads(text)
    assert (told["works"], told["card"]["parameters"]) == (True, 5304832)
    status, text = ran("/no/such/model", "--json")
    assert status == 1
    assert "no model directory" in json.loads(text)["reason"]
    assert ran("llava-demo", "--dtype", "float8")[0] == 1
    assert ran("llava-demo", "--device", "abacus")[0] == 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: edit_weights(f, lambda w: drop(w, "lm_head")), "lm_head.weight"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
        (lambda f: (f / "chat_template.jinja").write_text("hello"), "chat template"),
        (
            lambda f: edit(f / "generation_config.json", lambda g: g.update(top_p=3)),
            "top_p",
        ),
    ],
)
def test_what_a_start_refuses_it_refuses(tmp_path: Path, spoil: Any, said: str) -> None:
    write(tmp_path)
    assert check(str(tmp_path), "cpu").works
    spoil(tmp_path)
    verdict = check(str(tmp_path), "cpu")
    assert not verdict.works
    assert said in verdict.reason
    assert len(list(lines(verdict))) == 1


def test_policies_without_a_meaning_are_told(tmp_path: Path) -> None:
    card = check(str(write(tmp_path, "gemma3")), "cpu").card
    assert card is not None
    assert card.refused_policies == ("mean-h2o", "roco")
    assert "look-m" in card.policies
    assert any("prefilled in one go" in each for each in card.special)


def test_a_package_that_is_needed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TOYS["qwen2_vl"].config().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as where it does not load
    reason = check(str(tmp_path), "cpu").reason
    assert "Qwen2-VL needs torchvision, which does not load here: pip install" in reason


def test_weights_that_do_not_fit_are_told_with_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "free_host_bytes", lambda: 2**20)
    verdict = check("llava-demo", "cpu")
    assert not verdict.works
    assert "does not fit: weights take 10.1 MiB of 1 MiB" in verdict.reason
    assert verdict.card is not None
