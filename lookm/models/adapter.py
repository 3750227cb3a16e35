"""One loaded model, seen as five calls: encode an image, embed, forward, logits, end of text.

The only code that talks to a transformers model. It relies on three of its interfaces and rewrites
nothing: the attention registry (our function runs in place of SDPA, on the text model only), extra
forward keyword arguments (they carry the step's context to every layer), and `mm_encoder_outputs`
(image features made one image at a time). Knows nothing about pages, policies or scheduling.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lookm.errors import RequestError
from lookm.models.families import Family
from lookm.models.loading import ATTENTION
from lookm.types import ImageInput


class StepContext(Protocol):
    """What a forward pass asks at each layer. Implemented by the runner, one per step."""

    def attend(
        self,
        layer: int,
        q_HTD: torch.Tensor,
        k_KTD: torch.Tensor,
        v_KTD: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Store k and v as the step says, and return the attention output `[T, H, D]`."""
        ...


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The shape of a text model's attention."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedPrompt:
    """A prompt ready for the text model.

    `embeds_TE` has image features in place; `pos_RT` are RoPE positions (R = 1, or 3 for M-RoPE);
    `is_image_T` marks image tokens; generated token i sits at position `next_pos + i`.
    """

    embeds_TE: torch.Tensor
    pos_RT: torch.Tensor
    is_image_T: torch.Tensor
    next_pos: int


class Adapter:
    """A supported transformers model in eval mode. Not thread-safe: one owner drives it."""

    def __init__(self, model: Any, family: Family) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION, _attend)
        model.set_attn_implementation({"text_config": ATTENTION})
        self._model = model
        self._language_model = model.model.language_model
        self.family = family
        text = model.config.get_text_config()
        self.dimensions = Dimensions(
            num_layers=text.num_hidden_layers,
            num_heads=text.num_attention_heads,
            num_kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None)
            or text.hidden_size // text.num_attention_heads,
            max_context_tokens=text.max_position_embeddings,
        )
        self.position_rows = 1
        self.image_token_id = int(model.config.image_token_id)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.eos_ids = _eos_ids(model)

    @torch.inference_mode()
    def encode_image(self, image: ImageInput) -> torch.Tensor:
        """Vision features of one image in the text model's space, `[num_tokens, E]`."""
        tensors = {
            name: torch.tensor(array, device=self.device) for name, array in image.tensors.items()
        }
        tensors = {
            name: tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
        features = self._model.get_image_features(**tensors, return_dict=True).pooler_output
        features_NE = torch.cat(list(features), dim=0)
        if features_NE.shape[0] != image.num_tokens:
            raise RequestError(
                f"an image gave {features_NE.shape[0]} features for {image.num_tokens} tokens",
                param="messages",
            )
        return features_NE

    @torch.inference_mode()
    def embed_prompt(
        self, prompt_ids: tuple[int, ...], features: list[torch.Tensor]
    ) -> EmbeddedPrompt:
        """Merge image features into the token embeddings, as the model itself would."""
        ids_1T = torch.tensor([prompt_ids], device=self.device)
        captured = self._capture(ids_1T, features)
        num_tokens = ids_1T.shape[1]
        pos = captured.get("position_ids")
        pos_RT = (
            torch.arange(num_tokens, device=self.device)[None]
            if pos is None
            else pos.flatten(0, -2)
        )
        return EmbeddedPrompt(
            embeds_TE=captured["inputs_embeds"][0],
            pos_RT=pos_RT,
            is_image_T=ids_1T[0] == self.image_token_id,
            next_pos=int(pos_RT.max()) + 1,
        )

    @torch.inference_mode()
    def embed_tokens(self, ids: list[int]) -> torch.Tensor:
        """Embeddings of generated tokens, `[n, E]`."""
        embeds: torch.Tensor = self._model.get_input_embeddings()(
            torch.tensor(ids, device=self.device)
        )
        return embeds

    @torch.inference_mode()
    def forward(
        self, embeds_TE: torch.Tensor, pos_RT: torch.Tensor, context: StepContext
    ) -> torch.Tensor:
        """One pass over a packed row of T tokens; returns the last hidden states `[T, E]`."""
        rows = pos_RT.shape[0]
        pos = pos_RT if rows == 1 else pos_RT[:, None]  # [1, T], or [3, 1, T] for M-RoPE
        hidden: torch.Tensor = self._language_model(
            inputs_embeds=embeds_TE[None],
            position_ids=pos,
            use_cache=False,
            kv_context=context,
        ).last_hidden_state
        return hidden[0]

    @torch.inference_mode()
    def logits(self, hidden_BE: torch.Tensor) -> torch.Tensor:
        """Float32 logits `[B, V]`."""
        return self._model.lm_head(hidden_BE).float()  # type: ignore[no-any-return]

    def _capture(self, ids_1T: torch.Tensor, features: list[torch.Tensor]) -> dict[str, Any]:
        """Run the multimodal model up to its language model and return what it would be given."""

        def stop(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            raise _CapturedError(kwargs)

        encoded = {"image": _ImageFeatures(features)} if features else None
        hook = self._language_model.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._model(input_ids=ids_1T, mm_encoder_outputs=encoded, use_cache=False)
        except _CapturedError as captured:
            return captured.kwargs
        finally:
            hook.remove()
        raise AssertionError("the model did not call its language model")


class _CapturedError(Exception):
    """Carries the language model's keyword arguments out of the forward pass."""

    def __init__(self, kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.kwargs = kwargs


@dataclass(frozen=True, slots=True, eq=False)
class _ImageFeatures:
    """What transformers' `mm_encoder_outputs` reads: a list of `[n, E]`, one per image."""

    pooler_output: list[torch.Tensor]


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    kv_context: StepContext | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: `[1, H, T, D]` in, `[1, T, H, D]` out."""
    assert kv_context is not None, "this model object belongs to an engine; do not call it directly"
    assert attention_mask is None, "the step context is the mask"
    out_THD = kv_context.attend(module.layer_idx, query[0], key[0], value[0], scaling)
    return out_THD[None], None


def _eos_ids(model: Any) -> frozenset[int]:
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)
