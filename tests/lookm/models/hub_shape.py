"""Tiny checkpoints as the hub holds them, and ways in which they arrive broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from tests.lookm.models import toys
from tests.lookm.models.toy_processors import PROCESSORS
from tests.lookm.models.toys import TOYS

WEIGHTS = "model.safetensors"
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def built(name: str, text: Any = None) -> tuple[Any, Any]:
    """Model and processor of a family, whose vocabulary is the tokenizer's.

    `text`: the config of another text model in this family's shell.
    """
    processor = PROCESSORS[name]()
    tokenizer = processor.tokenizer
    config = TOYS[name].config()
    if text is not None:
        config.text_config = text
    config.text_config.vocab_size = len(tokenizer)
    feature = getattr(tokenizer, "image_token", None) or processor.image_token
    config.image_token_id = tokenizer.convert_tokens_to_ids(feature)
    return toys.filled(config), processor


def write(
    folder: Path, name: str = "llava", *, text: Any = None, max_shard_size: str = "1GB"
) -> Path:
    """Model and processor of a family (`built`), saved."""
    model, processor = built(name, text)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)
    return folder


def as_published(folder: Path) -> None:
    """The files as repositories of 2024 have them: an image processor's config of its own, none of
    a video processor, and the chat template in JSON."""
    path = folder / "processor_config.json"
    processor = json.loads(path.read_text())
    processor.pop("video_processor", None)
    image_processor = processor.pop("image_processor")
    image_processor["processor_class"] = processor["processor_class"]
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))
    path.write_text(json.dumps(processor))
    if len(processor) == 1:  # its class, which the other file names
        path.unlink()
    template = folder / "chat_template.jinja"
    if template.exists():
        content = {"chat_template": template.read_text()}
        (folder / "chat_template.json").write_text(json.dumps(content))
        template.unlink()


def under_own_names(folder: Path) -> None:
    """The weights of a checkpoint in one file, called as transformers' modules are today."""
    model = hf.AutoModelForImageTextToText.from_pretrained(folder)
    tied = set(model.all_tied_weights_keys)
    weights = {name: each for name, each in model.state_dict().items() if name not in tied}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the weights of a checkpoint in one file."""
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def rename(weights: dict[str, torch.Tensor], before: str, after: str) -> None:
    """Put another prefix in the place of one."""
    for name in [name for name in weights if name.startswith(before)]:
        weights[after + name.removeprefix(before)] = weights.pop(name)


def drop(weights: dict[str, torch.Tensor], part: str) -> None:
    """Leave out what has `part` in its name."""
    for name in [name for name in weights if part in name]:
        del weights[name]
