"""Chat messages and pixels in, token ids and tensors out; and ids back into text.

Wraps a checkpoint's transformers processor. Knows chat templates and image preprocessing; knows
nothing about HTTP, untrusted bytes (`server.media`) or the weights.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lookm.errors import ModelError, RequestError, in_one_line
from lookm.models.chat_forms import (
    TEMPLATE_ERRORS,
    Form,
    find_forms,
    in_forms,
    keys_of,
    one_template,
)
from lookm.models.checkpoint import Checkpoint
from lookm.models.detail import Detail
from lookm.models.families import Family, family_of
from lookm.models.image_layouts import PLACEHOLDER, arranged
from lookm.models.loading import find, load_config, load_processor, served_name
from lookm.models.places import PlacedImage, places
from lookm.models.preprocessing import PLAIN, Preprocessing
from lookm.models.shown_tokens import hidden_ids, shown
from lookm.models.token_sizes import check_length, max_token_characters
from lookm.types import Array, ImageInput

if TYPE_CHECKING:
    from PIL import Image


class Processor:
    """One model's text and image preprocessing. Safe to call from several threads."""

    def __init__(self, hf_processor: Any, config: Any, *, name: str) -> None:
        self.name = name
        self.family: Family = family_of(config)
        self.max_context_tokens = int(config.get_text_config().max_position_embeddings)
        self.image_token_id = int(config.image_token_id)  # one per feature, unlike the placeholder
        self._hf = hf_processor
        self._tokenizer = hf_processor.tokenizer
        self._template = (
            one_template(hf_processor.chat_template, name)
            or one_template(self._tokenizer.chat_template, name)
            or self.family.template
        )
        self.template: str = self._template or ""  # the source of the one it uses
        settings = hf_processor._merge_kwargs(tokenizer_init_kwargs=self._tokenizer.init_kwargs)
        self._pictures = Preprocessing(
            self.family, hf_processor, settings["images_kwargs"], self._num_image_tokens
        )
        if self.max_context_tokens < 1:
            message = f"{name}: config.json has {self.max_context_tokens} max_position_embeddings"
            raise ModelError(message, param="model")
        self._lock = threading.Lock()  # the fast tokenizer keeps mutable settings between calls
        self._prefix = self._bos_prefix()
        self._hidden_ids = hidden_ids(self._tokenizer)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        self.max_token_characters = max_token_characters(backend)
        self._forms: Mapping[str, Form] = {}
        if self._template is not None:
            self._forms = find_forms(self.rendered, hf_processor.image_token, name)
        self._check_image_token()

    @classmethod
    def load(cls, model: str) -> "Processor":
        """By bundled name, directory or hub name. Raises `ModelError`."""
        return cls.of(find(model), name=served_name(model))

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, name: str) -> "Processor":
        """Of a checkpoint that was found. Raises `ModelError`."""
        path = str(checkpoint.folder)
        config = load_config(path)
        return cls(load_processor(path, family_of(config)), config, name=name)

    @property
    def has_template(self) -> bool:
        """Whether it can render chats, or plain text alone."""
        return self._template is not None

    @property
    def no_template(self) -> str:
        """What its chats are answered with where it cannot."""
        return f"{self.name} has no chat template"

    @property
    def num_text_tokens(self) -> int:
        """Of the tokenizer's own vocabulary, added tokens aside."""
        return int(self._tokenizer.vocab_size)

    @property
    def tokenizer_json(self) -> str | None:
        """The fast tokenizer's own description; None where the tokenizer is not a fast one."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return None if backend is None else str(backend.to_str())

    def image(
        self,
        image: "Image.Image",
        digest: str,
        sent: tuple[int, int] | None = None,
        detail: Detail = PLAIN,
    ) -> ImageInput:
        """Preprocess one RGB image: resize, normalise, count its tokens. CPU work.

        `digest` is the image's name in the engine's cache of features: another for every picture;
        the input's own has what `detail` changes added to it. `sent` is its width and height before
        it was reduced, if it was. Raises `RequestError` where `detail` has too small a budget.
        """
        return self._pictures.image(image, digest, sent, detail)

    def large_image(self) -> ImageInput:
        """One that costs as much as images usually can: a black square of 4 megapixels."""
        from PIL import Image

        return self.image(Image.new("RGB", (2048, 2048)), "large")

    def small_image(self) -> ImageInput:
        """One that costs as little as an image can. Raises `ModelError` where none can be made."""
        from PIL import Image

        try:
            return self.image(Image.new("RGB", (64, 64)), "small")
        except Exception as error:
            raise ModelError(
                f"{self.name}: its image processor fails on a picture ({in_one_line(error)}): "
                "look at processor_config.json or preprocessor_config.json",
                param="model",
            ) from error

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[ImageInput],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[int, ...]:
        """Render the chat template and expand each image placeholder to its tokens.

        `messages` are chat-template dicts, content a string or a list of `{"type": "image"}` and
        `{"type": "text", "text": ...}` parts; `images` in the order of their parts; `tools` as
        OpenAI writes them. Control tokens spelled out in the text (`</s>`, `<image>`) are encoded
        as plain text, never obeyed. Raises `PromptTooLongError` early for what is far too long.
        """
        with self._lock:
            rendered = self._render(messages, tools)
            ids = self._ids_of_plain(rendered, images)
            if ids is None:
                text = self._expand(rendered, images)
                self._check_length(text, self._chat_ids, "messages")
                ids = self._chat_ids(text)
        if self._template is not self.family.template and ids[: len(self._prefix)] != self._prefix:
            ids = self._prefix + ids
        return tuple(ids)

    def rendered(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """The chat as the model will see it, images not expanded: shows what a template can do."""
        with self._lock:
            return self._render(messages, tools)

    def text(self, text: str) -> tuple[int, ...]:
        """Plain text, no chat template, with the tokenizer's own beginning-of-text token.

        Raises `PromptTooLongError` early for what is far too long.
        """
        with self._lock:
            self._check_length(text, self._plain_ids, "prompt")
            ids = self._plain_ids(text)
        return (*self._prefix, *ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, control tokens left out but for those of an answer."""
        return self._decode([token for token in ids if token not in self._hidden_ids])

    def tokens_per_image(self, images: Sequence[ImageInput]) -> tuple[int, ...]:
        """Those of each, in a prompt of exactly these."""
        return tuple(image.num_tokens for image in arranged(images, self.family))

    @property
    def fewest_image_tokens(self) -> int:
        """No image takes fewer, whatever its detail."""
        return self._pictures.fewest_tokens

    def _num_image_tokens(self, text: str) -> int:
        """How many tokens of an image's text are the image's."""
        with self._lock:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids.count(self.image_token_id)

    def _chat_ids(self, text: str) -> list[int]:
        """Of a rendered chat."""
        ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, sanitize_control_tokens=True
        )["input_ids"]
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        """Of text in which nothing is a control token."""
        ids: list[int] = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )
        return ids

    def _check_length(self, text: str, ids_of: Callable[[str], list[int]], param: str) -> None:
        def count(piece: str) -> int:
            return len(ids_of(piece))

        check_length(text, count, self.max_context_tokens, param=param)

    def _render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> str:
        """The chat as text, with what users wrote marked wherever it spells a control token."""
        template = self._template
        if template is None:
            raise ModelError(self.no_template, param="messages")
        messages = in_forms(messages, self._forms)
        keys = [*keys_of(messages), *keys_of(list(tools))]
        try:
            (marked, marked_keys), marked_tools, *_ = self._tokenizer._mark_chat_inputs(
                template, [messages, keys], list(tools) or None, None, {}, True, False
            )
            rendered: str = self._tokenizer.apply_chat_template(
                marked,
                tools=marked_tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except TEMPLATE_ERRORS as error:
            # A chat template is a program of the checkpoint: it raises on what it cannot
            # render, for example roles that do not alternate.
            raise RequestError(
                f"the chat template of {self.name} refused these messages: {error}",
                param="messages",
            ) from error
        if marked_keys != keys:
            message = "a name in the tools or their arguments spells a control token"
            raise RequestError(message, param="tools")
        return rendered

    def _ids_of_plain(self, text: str, images: Sequence[ImageInput]) -> list[int] | None:
        """The ids where each image is its control token alone, so many times: tokenized once each.

        None where an image's text is another: all of it must be tokenized, as it stands.
        """
        token = self._hf.image_token
        shown = [_placeholder(image.tensors) for image in arranged(images, self.family)]
        if any(each != token * (len(each) // len(token)) for each in shown):
            return None
        self._check_length(text, self._chat_ids, "messages")
        short = self._chat_ids(text)
        if short.count(self.image_token_id) != len(images):
            return None  # `_expand` says what is wrong, if anything is
        counts = iter(len(each) // len(token) for each in shown)
        return [
            id
            for each in short
            for id in ([each] * next(counts) if each == self.image_token_id else (each,))
        ]

    def _expand(self, text: str, images: Sequence[ImageInput]) -> str:
        """Each image's own text in place of its placeholder, before anything is tokenized.

        Text around an image may share a token with it (Gemma 3 puts newlines around images).
        """
        expanded = [_placeholder(image.tensors) for image in arranged(images, self.family)]
        spare = [self._hf.image_token] * text.count(self._hf.image_token)  # stands for itself
        (text,), (places,) = self._hf.get_text_with_replacements([text], [*expanded, *spare])
        if len(places) != len(images):
            raise RequestError(
                f"the chat template placed {len(places)} images, the request has {len(images)}",
                param="messages",
            )
        return text

    def places(self, ids: Sequence[int], images: Sequence[ImageInput]) -> tuple[PlacedImage, ...]:
        """Where the images of a prompt are, and what their tokens stand for."""
        return places(ids, arranged(images, self.family), self.image_token_id)

    def shown(self, ids: Sequence[int]) -> list[str]:
        """What each of the ids adds to a text, control tokens by their names."""
        return shown(ids, self._decode)

    def _decode(self, ids: list[int]) -> str:
        with self._lock:
            return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _check_image_token(self) -> None:
        """Raises `ModelError` where the config means another token by an image's features."""
        small = self.small_image()
        self._pictures.learn(small)
        if not small.num_tokens:
            known = 0 <= self.image_token_id < len(self._tokenizer)
            token = self._tokenizer.convert_ids_to_tokens(self.image_token_id) if known else None
            raise ModelError(
                f"{self.name}: image_token_id {self.image_token_id} of config.json is "
                f"{token!r} to the tokenizer, "
                "and not what its processor puts in an image's place: one is of another model",
                param="model",
            )

    def _bos_prefix(self) -> list[int]:
        """Ids the tokenizer puts before any text by itself: `[bos]`, or nothing."""
        bare: list[int] = self._tokenizer.encode("a", add_special_tokens=False)
        full: list[int] = self._tokenizer.encode("a", add_special_tokens=True)
        return full[: len(full) - len(bare)] if full[-len(bare) :] == bare else []


def _placeholder(tensors: Mapping[str, Array]) -> str:
    return tensors[PLACEHOLDER].tobytes().decode()
