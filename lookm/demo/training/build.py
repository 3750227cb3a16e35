"""The files around the weights: tokenizer, processor, configuration, chat template.

Knows what `transformers` wants to find in a checkpoint folder. Knows nothing of training.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lookm.demo import words
from lookm.demo.scenes import draw_scene
from lookm.demo.training import english, smalltalk
from lookm.demo.training.bank import IMAGE_PX, PATCH_PX, PATCHES
from lookm.demo.training.chat import (
    ASSISTANT,
    END,
    IMAGE,
    LABELS,
    SYSTEM,
    TEMPLATE,
    USER,
    draw_question,
    draw_world,
)
from lookm.demo.training.vision import vision_config

PAD, BEGIN = "<pad>", "<s>"
MARKERS: Final = (PAD, BEGIN, END, IMAGE, USER, ASSISTANT, SYSTEM, *LABELS)
_MAX_VOCABULARY: Final = 1536


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over what the demo world says; every marker is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    markers = [AddedToken(marker, special=True, normalized=False) for marker in MARKERS]
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_VOCABULARY,
        special_tokens=markers,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=4,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    begin = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)]
    )
    return wrap(tokenizer)


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as `transformers` knows it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> list[str]:
    rng = random.Random("llava-demo tokenizer")
    lines: list[str] = []
    for _ in range(1500):
        world = draw_world(rng, [draw_scene(rng) for _ in range(rng.randint(1, 16))])
        for _ in range(4):
            question = draw_question(rng, world)
            lines += [question.question, question.answer]
    said = [phrase for phrases, reply in smalltalk.REPLIES for phrase in (*phrases, reply)]
    said += [*smalltalk.SYSTEM, *smalltalk.INTROS, *smalltalk.BETWEEN, smalltalk.FALLBACK]
    said += [*smalltalk.NO_IMAGE_QUESTIONS, smalltalk.NO_IMAGE, *words.NOTE_KEYS]
    known = [*words.NOTE_WORDS, *words.ORDINALS, *words.NUMBERS, *english.ENGLISH]
    spelled = [form for word in known for form in (word, f" {word}", word.capitalize())]
    return [*lines, *(said * 8), *(spelled * 8)]


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Pictures are squashed to a square, so that nothing is cropped away."""
    side = {"height": IMAGE_PX, "width": IMAGE_PX}
    images = CLIPImageProcessorPil(
        size=side,
        crop_size=side,
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which "default" drops again
        image_token=IMAGE,
        chat_template=TEMPLATE,
    )


def build_config(vocabulary: int) -> LlavaConfig:
    """5.3 M parameters in all: 6 language layers of width 256, 4 heads of 64, tied embeddings."""
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        pad_token_id=MARKERS.index(PAD),
        bos_token_id=MARKERS.index(BEGIN),
        eos_token_id=MARKERS.index(END),
        tie_word_embeddings=True,
    )
    return LlavaConfig(
        vision_config=vision_config(),
        text_config=text,
        image_token_index=MARKERS.index(IMAGE),
        image_seq_length=PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=MARKERS.index(PAD),
        bos_token_id=MARKERS.index(BEGIN),
        eos_token_id=MARKERS.index(END),
    )


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write a checkpoint that plain `from_pretrained` loads; weights in bfloat16."""
    import torch

    copy = LlavaForConditionalGeneration(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16)
    copy.generation_config = GenerationConfig(
        bos_token_id=MARKERS.index(BEGIN),
        eos_token_id=MARKERS.index(END),
        pad_token_id=MARKERS.index(PAD),
        do_sample=False,
        max_new_tokens=256,
    )
    copy.save_pretrained(folder)
    processor.save_pretrained(folder)
