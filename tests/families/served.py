"""A tiny checkpoint in hub shape behind a real server, beside transformers' own model of it."""

import copy
import functools
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openai
import torch
import transformers as hf
from PIL import Image

from lookm import compressing
from lookm.policy import parse
from tests.families.cases import Case
from tests.lookm.models import hub_shape
from tests.lookm.models.expected_answer import compressed_answer
from tests.lookm.models.transformers_answer import answer_to, inputs_of
from tests.server.process import ServerProcess
from tests.server.requests import data_url, image, text

NUM_TOKENS = 16
SIZES = ((70, 40), (48, 48), (33, 90), (24, 24))
PICTURES = [
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8))
    for i, (width, height) in enumerate(SIZES)
]
#: Answers that were compared, by checkpoint: how many, and how many were equal.
ROWS: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class Turn:
    """One message: pictures, by their number, then words."""

    words: str
    pictures: tuple[int, ...] = ()
    role: str = "user"

    def ours(self) -> dict[str, Any]:
        shown = [image(data_url(_png(PICTURES[i]))) for i in self.pictures]
        return {"role": self.role, "content": [*shown, text(self.words)]}

    def theirs(self) -> dict[str, Any]:
        shown = [{"type": "image", "image": PICTURES[i]} for i in self.pictures]
        return {"role": self.role, "content": [*shown, text(self.words)]}


Chat = tuple[Turn, ...]


def ask(words: str, *pictures: int) -> Chat:
    return (Turn(words, pictures),)


#: PaliGemma's prompts have images.
CHATS: tuple[Chat, ...] = (
    ask("What is in the picture?", 0),
    ask("Which picture is the same?", 1, 2, 1),
    ask("Here is the image. What is it?", 3),
    ask("user model assistant", 2, 0),
)
TEXT_ONLY = ask("What is a picture, and what is an image? " * 2)


@dataclass
class Asked:
    """A chat as transformers' model is called with it (`expected_answer.Asked`)."""

    tensors: dict[str, torch.Tensor]
    image_token_id: int
    prefix: bool
    position_rows: int

    def inputs(self) -> dict[str, Any]:
        return dict(self.tensors)

    @property
    def is_image(self) -> torch.Tensor:
        return self.tensors["input_ids"][0] == self.image_token_id

    @property
    def next_pos(self) -> int:
        return len(self.is_image) + self.prefix  # PaliGemma counts from 1


@dataclass(eq=False)
class Served:
    """One case: the server, and what its answers must be."""

    case: Case
    server: ServerProcess
    model: Any
    processor: Any
    row: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model_type = self.case.family.model_type
        self.row = {"checkpoint": self.case.name, "model_type": model_type}
        self.row |= {"answers": 0, "equal": 0}
        ROWS[self.case.name] = self.row

    @functools.cached_property
    def client(self) -> openai.OpenAI:
        return self.server.client

    @functools.cached_property
    def served_name(self) -> str:
        return str(self.client.models.list().data[0].id)

    @property
    def chats(self) -> tuple[Chat, ...]:
        only_images = self.case.family.prefill == "prefix"
        return CHATS if only_images else (*CHATS, TEXT_ONLY)

    def answer(self, chat: Chat, policy: str = "full", **more: Any) -> Any:
        """The server's answer: greedy, of `NUM_TOKENS`."""
        return self.client.chat.completions.create(
            model=self.served_name,
            messages=[turn.ours() for turn in chat],
            temperature=0,
            max_tokens=NUM_TOKENS,
            extra_body={"ignore_eos": True, "kv_cache": policy, **more},
        )

    def asked(self, chat: Chat) -> Asked:
        family = self.case.family
        return Asked(
            inputs_of(self.processor, [turn.theirs() for turn in chat]),
            self.model.config.image_token_id,
            family.prefill == "prefix",
            family.position_rows,
        )

    @functools.cache  # noqa: B019 - as long as the server, which ends with the run
    def expected(self, chat: Chat, policy: str = "full") -> list[int]:
        """transformers' answer; under a policy, over the cache that `lookm.compressing` gives, or
        where that cannot (images that see themselves, windows) over one compressed layer by layer.
        """
        asked = self.asked(chat)
        if policy == "full":
            return answer_to(self.model, asked.inputs(), NUM_TOKENS)
        if self.plain:
            with compressing(self.model, policy, asked.is_image) as cache:
                return answer_to(self.model, asked.inputs(), NUM_TOKENS, past_key_values=cache)
        return compressed_answer(copy.deepcopy(self.model), asked, parse(policy), NUM_TOKENS)

    @property
    def plain(self) -> bool:
        """Whether every token sees all before it and no other, in every layer."""
        text_config = self.model.config.get_text_config()
        kinds = getattr(text_config, "layer_types", None) or ["full_attention"]
        return self.case.family.prefill == "causal" and set(kinds) == {"full_attention"}

    def compare(self, answer: Any, expected: list[int]) -> None:
        """Counts the answer, and fails where it is another one."""
        got = answer.choices[0].message.content
        wanted = self.processor.tokenizer.decode(
            expected, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        self.row["answers"] += 1
        self.row["equal"] += got == wanted
        assert got == wanted
        assert len(set(expected)) > 2, "an answer that never changes proves nothing"


def checkpoint(case: Case, folder: Path) -> tuple[Any, Any]:
    """Writes it; returns transformers' model and processor of it."""
    shards = {"max_shard_size": "100KB"} if case.published else {}
    hub_shape.write(folder, case.toy, text=case.text and case.text(), **shards)
    if case.published:
        hub_shape.as_published(folder)
    else:
        hub_shape.under_own_names(folder)
    processor = hf.AutoProcessor.from_pretrained(folder)
    model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    answer = answer_to(model, inputs_of(processor, [CHATS[0][0].theirs()]), NUM_TOKENS)
    ends = [2, answer[NUM_TOKENS // 2]]
    hub_shape.edit(folder / "generation_config.json", lambda file: file.update(eos_token_id=ends))
    return model, processor


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
