"""Random checkpoints of a real shape: for speed and memory, which do not depend on the weights.

    python -m lookm.bench.random_checkpoint mid /tmp/mid    # 226 M parameters, 576 tokens an image

Writes weights, a word tokenizer, an image processor and a chat template, so that any server that
loads transformers checkpoints can serve it. Says nothing about quality, ever.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_SPECIAL = ("<pad>", "<s>", "</s>", "<image>", "<unk>")
_CELLS = (f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_TILES = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *_CELLS)
_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' }}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] + ' ' }}"
    "{% endfor %}{% endif %}{% endfor %}{{ 'assistant ' if add_generation_prompt }}"
)


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides speed and memory of a LLaVA; `tiled`: of an Idefics3, which cuts pictures into
    tiles, so that it can be asked for fewer."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    vision_layers: int
    vision_hidden: int
    image_side_px: int = 336
    max_context_tokens: int = 4096
    tiled: bool = False


SHAPES: dict[str, Shape] = {
    "tiny": Shape(2, 64, 128, 4, 2, 512, 2, 32, image_side_px=56),
    "mid": Shape(12, 1024, 2816, 16, 16, 32000, 4, 256),
    "mid-gqa": Shape(12, 1024, 2816, 16, 4, 32000, 4, 256),
    # Long documents on a small machine: 24 pages of 576 tokens, and room for many questions.
    "pages": Shape(6, 256, 704, 4, 4, 8000, 2, 64, max_context_tokens=20480),
    "tiles": Shape(6, 256, 704, 4, 4, 8000, 2, 64, 364, max_context_tokens=20480, tiled=True),
    "llava-1.5-7b": Shape(32, 4096, 11008, 32, 32, 32064, 24, 1024, max_context_tokens=16384),
}


def write(
    shape: Shape, folder: Path, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> None:
    """Write a random checkpoint with its processor into `folder`."""
    build(shape, dtype=dtype, seed=seed).save_pretrained(folder)
    _processor(shape).save_pretrained(folder)


def build(
    shape: Shape, *, dtype: torch.dtype = torch.bfloat16, device: str = "cpu", seed: int = 0
) -> Any:
    """The random model itself, in eval mode, its weights made on `device`."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(_config(shape), dtype=dtype)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.eos_token_id = None
    return model.eval()


def _config(shape: Shape) -> Any:
    from transformers import CLIPVisionConfig, Idefics3Config, LlamaConfig, LlavaConfig

    text = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.max_context_tokens,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    if shape.tiled:
        vision = {
            "hidden_size": shape.vision_hidden,
            "intermediate_size": 4 * shape.vision_hidden,
            "num_hidden_layers": shape.vision_layers,
            "num_attention_heads": max(1, shape.vision_hidden // 64),
            "image_size": shape.image_side_px,
            "patch_size": 14,
        }
        image_token_id = _SPECIAL.index("<image>")
        return Idefics3Config(
            vision_config=vision, text_config=text, image_token_id=image_token_id, scale_factor=2
        )
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=shape.vision_hidden,
            intermediate_size=4 * shape.vision_hidden,
            num_hidden_layers=shape.vision_layers,
            num_attention_heads=max(1, shape.vision_hidden // 64),
            image_size=shape.image_side_px,
            patch_size=14,
        ),
        text_config=text,
        image_token_index=_SPECIAL.index("<image>"),
        image_seq_length=(shape.image_side_px // 14) ** 2,
    )


def _processor(shape: Shape) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import Idefics3Processor, LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    special = (*_SPECIAL, *(_TILES if shape.tiled else ()))
    words = [*special, *(f"\u2581w{i}" for i in range(len(special), shape.vocabulary))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    if shape.tiled:
        edge = {"longest_edge": shape.image_side_px}
        return Idefics3Processor(
            Idefics3ImageProcessorPil(
                size={"longest_edge": 4 * shape.image_side_px}, max_image_size=edge
            ),
            fast,
            image_seq_len=(shape.image_side_px // 14) ** 2 // 4,
            chat_template=_TEMPLATE,
        )
    side = {"height": shape.image_side_px, "width": shape.image_side_px}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, crop_size=side),
        tokenizer=fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one checkpoint; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lookm.bench.random_checkpoint")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    write(SHAPES[options.shape], options.folder)
    print(f"{options.shape} written to {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
