"""transformers' own inputs and greedy answer of a chat: what ours must be."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

Chat = Sequence[Mapping[str, Any]]


def inputs_of(processor: Any, chat: Chat) -> dict[str, torch.Tensor]:
    """What the model is called with. The chat's parts are transformers': text, and PIL images."""
    if processor.chat_template is None:  # PaliGemma: images, then one text
        (message,) = chat
        pictures = [part["image"] for part in message["content"] if part["type"] == "image"]
        text = "".join(part["text"] for part in message["content"] if part["type"] == "text")
        prompt = "<image>" * len(pictures) + text
        inputs = processor(text=[prompt], images=[pictures], return_tensors="pt")
    else:
        inputs = processor.apply_chat_template(
            list(chat),
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
    return {name: tensor for name, tensor in inputs.items() if name != "labels"}


def answer_to(
    model: Any, inputs: Mapping[str, torch.Tensor], num_tokens: int, **more: Any
) -> list[int]:
    """The tokens that greedy `generate()` adds."""
    settings = {"max_new_tokens": num_tokens, "do_sample": False, "pad_token_id": 0}
    out = model.generate(**inputs, **settings, **more)
    answer: list[int] = out[0, inputs["input_ids"].shape[1] :].tolist()
    return answer
