"""Chat messages and pixels in, token ids and tensors out; and ids back into text.

Wraps a checkpoint's transformers processor. Knows chat templates and image preprocessing; knows
nothing about HTTP, untrusted bytes (`server.media`) or the weights.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError

from lookm.errors import ModelError, RequestError
from lookm.models.families import Family, family_of
from lookm.models.loading import load_config, load_processor, resolve_path, served_name
from lookm.types import Array, ImageInput

if TYPE_CHECKING:
    from PIL import Image


class Processor:
    """One model's text and image preprocessing. Safe to call from several threads."""

    def __init__(self, hf_processor: Any, config: Any, *, name: str) -> None:
        self.name = name
        self.family: Family = family_of(config)
        self.max_context_tokens = int(config.get_text_config().max_position_embeddings)
        self._hf = hf_processor
        self._tokenizer = hf_processor.tokenizer
        self._lock = threading.Lock()  # the fast tokenizer keeps mutable settings between calls
        self.image_token_id = int(hf_processor.image_token_id)
        self._prefix = self._bos_prefix()

    @classmethod
    def load(cls, model: str) -> "Processor":
        """By bundled name, directory or hub name. Raises `ModelError`."""
        path = resolve_path(model)
        config = load_config(path)
        return cls(load_processor(path, family_of(config)), config, name=served_name(model))

    def image(self, image: "Image.Image", digest: str) -> ImageInput:
        """Preprocess one RGB image: resize, normalise, count its tokens. CPU work."""
        outputs = self._hf.image_processor(images=[image], return_tensors="pt")
        tensors: dict[str, Array] = {
            name: np.ascontiguousarray(outputs[name].numpy())
            for name in self.family.image_tensors
            if name in outputs
        }
        num_tokens = self._image_ids(tensors).count(self.image_token_id)
        return ImageInput(digest=digest, tensors=tensors, num_tokens=num_tokens)

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], images: Sequence[ImageInput]
    ) -> tuple[int, ...]:
        """Render the chat template and expand each image placeholder to its tokens.

        `messages` are chat-template dicts, content a string or a list of `{"type": "image"}` and
        `{"type": "text", "text": ...}` parts; `images` in the order of their parts. Control tokens
        spelled out in the text (`</s>`, `<image>`) are encoded as plain text, never obeyed.
        """
        if self._hf.chat_template is None:
            raise ModelError(f"{self.name} has no chat template", param="messages")
        with self._lock:
            try:
                ids = self._tokenizer.apply_chat_template(
                    list(messages),
                    chat_template=self._hf.chat_template,
                    tokenize=True,
                    add_generation_prompt=True,
                    return_dict=False,
                    sanitize_control_tokens=True,
                )
            except (TemplateError, ValueError, TypeError, KeyError) as error:
                # A chat template is a program of the checkpoint: it raises on what it cannot
                # render, for example roles that do not alternate.
                raise RequestError(
                    f"the chat template of {self.name} refused these messages: {error}",
                    param="messages",
                ) from error
        if not ids or ids[: len(self._prefix)] != self._prefix:
            ids = self._prefix + ids
        return self._expand(ids, images)

    def text(self, text: str) -> tuple[int, ...]:
        """Plain text, no chat template, with the tokenizer's own beginning-of-text token."""
        with self._lock:
            ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return (*self._prefix, *ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, control tokens left out."""
        with self._lock:
            return str(
                self._tokenizer.decode(
                    list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )

    def _expand(self, ids: list[int], images: Sequence[ImageInput]) -> tuple[int, ...]:
        places = ids.count(self.image_token_id)
        if places != len(images):
            raise RequestError(
                f"the chat template placed {places} images, the request has {len(images)}",
                param="messages",
            )
        expanded: list[int] = []
        remaining = iter(images)
        for token in ids:
            if token == self.image_token_id:
                expanded.extend(self._image_ids(next(remaining).tensors))
            else:
                expanded.append(token)
        return tuple(expanded)

    def _image_ids(self, tensors: Mapping[str, Array]) -> list[int]:
        text = self._hf.replace_image_token(dict(tensors), 0)
        with self._lock:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _bos_prefix(self) -> list[int]:
        """Ids the tokenizer puts before any text by itself: `[bos]`, or nothing."""
        bare: list[int] = self._tokenizer.encode("a", add_special_tokens=False)
        full: list[int] = self._tokenizer.encode("a", add_special_tokens=True)
        return full[: len(full) - len(bare)] if full[-len(bare) :] == bare else []
