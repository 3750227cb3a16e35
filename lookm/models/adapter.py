"""One loaded model, seen as five calls: encode an image, embed, forward, logits, end of text.

The only code that talks to a transformers model. It relies on three of its interfaces and rewrites
nothing: the attention registry (our function runs in place of SDPA, on the text model only), extra
forward keyword arguments (they carry the step's context to every layer), and `mm_encoder_outputs`
(image features made one image at a time). Families differ in the facts of `families`, nowhere
else. Knows nothing about pages, policies or scheduling.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lookm.attention import ModelKernels
from lookm.errors import ModelError
from lookm.models.attention_interface import (
    ATTENTION,
    Dimensions,
    PaddedContext,
    Probe,
    StepContext,
    attend,
)
from lookm.models.families import Family
from lookm.models.fast.accelerate import accelerate
from lookm.models.fast.onednn import rounded_rows
from lookm.models.inputs import EmbeddedPrompt, PackedRows, PromptMask
from lookm.models.tiles import Paused, TiledForward, wrap_layers
from lookm.models.vision import Vision
from lookm.progress import Progress
from lookm.types import ImageInput

__all__ = ["Adapter", "Dimensions", "EmbeddedPrompt", "PackedRows", "StepContext"]


class Adapter:
    """A supported transformers model in eval mode. Not thread-safe: one owner drives it."""

    def __init__(self, model: Any, family: Family) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION, attend)
        model.set_attn_implementation({"text_config": ATTENTION})
        self._model = model
        self._language_model = getattr(model.model, family.text_model)
        self.family = family
        self.progress = Progress()
        self.vision = Vision(model, self._language_model, family, self.progress)
        self._text_config = model.config.get_text_config()
        self.position_rows = family.position_rows
        self.num_levels = 1  # of an image's features
        if family.deepstack:
            self.num_levels += len(model.config.vision_config.deepstack_visual_indexes)
        self.image_token_id = int(model.config.image_token_id)
        self.num_embeddings = len(model.get_input_embeddings().weight)
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.eos_ids = _eos_ids(model)
        self._softcap: float | None = (
            getattr(self._text_config, "final_logit_softcapping", None)
            if family.softcaps_logits
            else None
        )
        self._packed = False
        self.dimensions = self._probe()

    def accelerate(self, kernels: ModelKernels | None) -> None:
        """Put faster modules that compute the same in the place of the model's own."""
        self._packed = accelerate(self._model, self._language_model, kernels)
        wrap_layers(self._language_model, self.progress)

    def no_features(self, image: ImageInput) -> torch.Tensor:
        """Stands for an image's features where nobody will read them, `[F, N, E]`."""
        embeds_1E = self.embed_tokens([0])
        return embeds_1E.new_zeros(self.num_levels, image.num_tokens, embeds_1E.shape[1])

    @torch.inference_mode()
    def embed_prompt(
        self,
        prompt_ids: tuple[int, ...],
        images: Sequence[ImageInput] = (),
        features: Sequence[torch.Tensor] = (),
        *,
        num_known: int = 0,
    ) -> EmbeddedPrompt:
        """Merge image features into the token embeddings, as the model itself would.

        The rows of the first `num_known` tokens nobody will read: if only text follows, whose
        position is its place, that alone is embedded.
        """
        ids_1T = torch.tensor([prompt_ids], device=self.device)
        is_image_1T = ids_1T == self.image_token_id
        if num_known and self.position_rows == 1 and not is_image_1T[:, num_known:].any():
            num_tokens = len(prompt_ids)
            return EmbeddedPrompt(
                embeds_TE=self.embed_tokens(ids_1T[0, num_known:]),
                pos_RT=torch.arange(num_tokens, device=self.device)[None],
                is_image_T=is_image_1T[0],
                next_pos=num_tokens,
                num_left_out=num_known,
            )
        causal = self.family.causal(has_images=bool(images))
        with contextlib.nullcontext() if causal else self._own_masks():
            captured = self._capture(ids_1T, self._arguments(is_image_1T, images, features))
        num_tokens = ids_1T.shape[1]
        pos = captured.get("position_ids")
        pos_RT = (
            torch.arange(num_tokens, device=self.device).expand(self.position_rows, -1)
            if pos is None
            else pos.flatten(0, -2)
        )
        deepstack = captured.get("deepstack_visual_embeds")
        return EmbeddedPrompt(
            embeds_TE=captured["inputs_embeds"][0],
            pos_RT=pos_RT,
            is_image_T=is_image_1T[0],
            next_pos=int(pos_RT.max()) + 1,
            deepstack_FVE=torch.stack(list(deepstack)) if deepstack else None,
            mask=None if causal else PromptMask.read(captured["attention_mask"]),
        )

    @torch.inference_mode()
    def embed_tokens(self, ids: list[int] | torch.Tensor) -> torch.Tensor:
        """Embeddings of generated tokens, `[n, E]`."""
        embeds: torch.Tensor = self._model.get_input_embeddings()(
            torch.as_tensor(ids, device=self.device)
        )
        return embeds

    @torch.inference_mode()
    def forward(self, rows: PackedRows, context: StepContext) -> torch.Tensor:
        """One pass over a packed row of T tokens; returns the last hidden states `[T, E]`."""
        num_rows = len(rows.embeds_TE)
        padded = self._padded(num_rows)
        if padded > num_rows:
            rows, context = rows.padded(padded), PaddedContext(context, num_rows)
        return self._run(rows, context)[:num_rows]

    @torch.inference_mode()
    def advance(self, job: TiledForward, pause: Callable[[], bool]) -> torch.Tensor | None:
        """Run a pass on, at least by a tile, until `pause`; the last hidden states when it ends."""
        job.begin(pause, self._padded)
        try:
            return self._run(job.rows, job)
        except Paused:
            return None

    def _padded(self, num_rows: int) -> int:
        """oneDNN compiles every product anew for every number of rows: few numbers, few
        compilations."""
        return rounded_rows(num_rows) if self._packed else num_rows

    def _run(self, rows: PackedRows, context: StepContext) -> torch.Tensor:
        pos = rows.pos_RT if len(rows.pos_RT) == 1 else rows.pos_RT[:, None]  # [1, T] or [3, 1, T]
        visual = {}
        if rows.is_visual_T is not None and rows.deepstack_FVE is not None:
            visual = {
                "visual_pos_masks": rows.is_visual_T[None],
                "deepstack_visual_embeds": list(rows.deepstack_FVE),
            }
        hidden: torch.Tensor = self._language_model(
            inputs_embeds=rows.embeds_TE[None],
            position_ids=pos,
            use_cache=False,
            kv_context=context,
            **visual,
        ).last_hidden_state
        return hidden[0]

    @torch.inference_mode()
    def logits(self, hidden_BE: torch.Tensor) -> torch.Tensor:
        """Float32 logits `[B, V]`."""
        logits_BV: torch.Tensor = self._model.lm_head(hidden_BE).float()
        if self._softcap is not None:
            logits_BV = (logits_BV / self._softcap).tanh_().mul_(self._softcap)
        return logits_BV

    def _probe(self) -> Dimensions:
        """Run one token to learn what each layer caches. Raises `ModelError`."""
        probe, num_layers = Probe(), self._text_config.num_hidden_layers
        pos_R1 = torch.zeros(self.position_rows, 1, dtype=torch.long, device=self.device)
        hidden = self.forward(PackedRows(self.embed_tokens([0]), pos_R1), probe)
        logits_1V = self.logits(hidden)
        if not logits_1V.is_meta and not logits_1V.isfinite().all():
            name = str(self.dtype).removeprefix("torch.")
            raise ModelError(
                f"this model's answers are no numbers in {name}: its weights are damaged, or it "
                "needs another --dtype",
                param="model",
            )
        num_heads, num_kv_heads, head_dim = probe.shape(num_layers)
        return Dimensions(
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_context_tokens=int(self._text_config.max_position_embeddings),
            windows_L=tuple(probe.windows),
        )

    def _arguments(
        self,
        is_image_1T: torch.Tensor,
        images: Sequence[ImageInput],
        features: Sequence[torch.Tensor],
    ) -> dict[str, Any]:
        """What the model wants to know of a prompt besides its ids."""
        arguments: dict[str, Any] = {}
        if self.family.type_argument:
            arguments[self.family.type_argument] = is_image_1T.long() * self.family.image_type
        if images:
            arguments["mm_encoder_outputs"] = {"image": self._encoded(features)}
            for name in self.family.grid_tensors:
                arguments[name] = torch.cat([self.vision.tensor(image, name) for image in images])
        return arguments

    def _encoded(self, features: Sequence[torch.Tensor]) -> "_ImageFeatures":
        merged = [features_FNE[0] for features_FNE in features]
        return _ImageFeatures(
            pooler_output=torch.cat(merged)[None] if self.family.stacked_features else merged,
            deepstack_features=[
                [features_FNE[level] for features_FNE in features]
                for level in range(1, features[0].shape[0])
            ],
        )

    def _capture(self, ids_1T: torch.Tensor, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run the multimodal model up to its language model and return what it would be given."""

        def stop(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            raise _CapturedError(kwargs)

        # The model itself decides where features and positions go; it is stopped before its first
        # layer.
        hook = self._language_model.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._model(input_ids=ids_1T, use_cache=False, **arguments)
        except _CapturedError as captured:
            return captured.kwargs
        finally:
            hook.remove()
        raise AssertionError("the model did not call its language model")

    @contextlib.contextmanager
    def _own_masks(self) -> Iterator[None]:
        """Let the model build its masks, as it does for SDPA and does not for our attention."""
        self._text_config._attn_implementation = "sdpa"
        try:
            yield
        finally:
            self._text_config._attn_implementation = ATTENTION


class _CapturedError(Exception):
    """Carries the language model's keyword arguments out of the forward pass."""

    def __init__(self, kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.kwargs = kwargs


@dataclass(frozen=True, slots=True, eq=False)
class _ImageFeatures:
    """What transformers' `mm_encoder_outputs` reads.

    `pooler_output`: `[n, E]` per image, or all stacked; `deepstack_features`: per level, per image.
    """

    pooler_output: list[torch.Tensor] | torch.Tensor
    deepstack_features: list[list[torch.Tensor]]


def _eos_ids(model: Any) -> frozenset[int]:
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    if eos is None:
        return frozenset()
    return frozenset([eos] if isinstance(eos, int) else eos)
