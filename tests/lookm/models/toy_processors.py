"""A processor of each family as a checkpoint would give it: the real class, a tiny tokenizer.

Where the class insists on torchvision (a video processor, a guard) and there is none, a stand-in
takes that place: nothing of it is used for images.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm import processing_smolvlm
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

SQUARE = {"height": 24, "width": 24}
PINPOINTS = [[24, 48], [48, 24], [48, 48]]
CROPPED = {"size": {"shortest_edge": 24}, "crop_size": SQUARE}
GRID = {"patch_size": 4, "min_pixels": 64, "max_pixels": 1600}
SPLIT = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
CELLS = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
IDEFICS = ["<image>", "<fake_token_around_image>", "<global-img>", *CELLS]
QWEN = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]

TEXTS = ["What is in the picture?\n\nHere is the image\n\nuser model assistant\n\n\n"] * 3


def tokenizer(special: list[str], **named: str) -> Any:
    """Byte-level BPE that merges newlines, with a beginning-of-text token it adds by itself."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<s>", "</s>", *special],
        show_progress=False,
    )
    bare.train_from_iterator(TEXTS, trainer)
    bare.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=bare,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=named,
    )


class NoVideo:
    """Where a video processor is asked for."""

    merge_size, num_frames, fps = 2, 8, 1
    model_input_names: tuple[str, ...] = ()


def video(name: str) -> Any:
    """The family's video processor, where torchvision lets it be made."""
    return NoVideo() if importlib.util.find_spec("torchvision") is None else getattr(hf, name)()


def template(image: str) -> str:
    """Turns with images and text in their order."""
    return (
        "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: "
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}model: {% endif %}"
    )


def llava() -> Any:
    return hf.LlavaProcessor(
        CLIPImageProcessorPil(**CROPPED),
        tokenizer(["<image>"]),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )


def llava_next() -> Any:
    return hf.LlavaNextProcessor(
        LlavaNextImageProcessorPil(**CROPPED, image_grid_pinpoints=PINPOINTS),
        tokenizer(["<image>"]),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>\n"),
    )


def llava_onevision() -> Any:
    return hf.LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer(["<image>", "<video>"]),
        video("LlavaOnevisionVideoProcessor"),
        num_image_tokens=9,
        vision_feature_select_strategy="full",
        chat_template=template("<image>\n"),
    )


def qwen(processor: Any, video_processor: str) -> Any:
    return processor(
        Qwen2VLImageProcessorPil(**GRID),
        tokenizer(QWEN),
        video(video_processor),
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )


def internvl() -> Any:
    named = {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    }
    return hf.InternVLProcessor(
        GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, max_patches=4),
        tokenizer(list(named.values()), **named),
        video("InternVLVideoProcessor"),
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>\n"),
    )


def idefics3() -> Any:
    return hf.Idefics3Processor(
        Idefics3ImageProcessorPil(**SPLIT),
        tokenizer(IDEFICS),
        image_seq_len=4,
        chat_template=template("<image>"),
    )


def smolvlm() -> Any:
    return hf.SmolVLMProcessor(
        SmolVLMImageProcessorPil(**SPLIT),
        tokenizer(IDEFICS),
        video("SmolVLMVideoProcessor"),
        image_seq_len=4,
        chat_template=template("<image>"),
    )


def gemma3() -> Any:
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    return hf.Gemma3Processor(
        Gemma3ImageProcessorPil(size=SQUARE),
        tokenizer(list(named.values()), **named),
        image_seq_length=9,
        chat_template=template("<start_of_image>"),
    )


def pixtral(merge: int) -> Any:
    # Past transformers' lazy package, which hides the class where torchvision is missing.
    module = importlib.import_module("transformers.models.pixtral.processing_pixtral")
    return module.PixtralProcessor(
        PixtralImageProcessorPil(size={"longest_edge": 48}, patch_size=8),
        tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"]),
        patch_size=8,
        spatial_merge_size=merge,
        chat_template=template("[IMG]"),
    )


def paligemma() -> Any:
    images = SiglipImageProcessorPil(size=SQUARE)
    images.image_seq_length = 9
    return hf.PaliGemmaProcessor(images, tokenizer(["<image>"]))


PROCESSORS: dict[str, Callable[[], Any]] = {
    "llava": llava,
    "pixtral": lambda: pixtral(1),
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": lambda: qwen(hf.Qwen2VLProcessor, "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": lambda: qwen(hf.Qwen2_5_VLProcessor, "Qwen2VLVideoProcessor"),
    "qwen3_vl": lambda: qwen(hf.Qwen3VLProcessor, "Qwen3VLVideoProcessor"),
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "gemma3": gemma3,
    "mistral3": lambda: pixtral(2),
    "paligemma": paligemma,
}


def without_torchvision(monkeypatch: Any) -> None:
    """Let processors be built that insist on torchvision or num2words."""
    mixin = hf.processing_utils.ProcessorMixin
    monkeypatch.setattr(mixin, "check_argument_for_proper_class", lambda *_: None)
    monkeypatch.setattr(processing_smolvlm, "num2words", str)
    if importlib.util.find_spec("torchvision") is None:
        name = "transformers.models.pixtral.image_processing_pixtral"
        stub = types.ModuleType(name)
        stub.get_resize_output_image_size = None
        monkeypatch.setitem(sys.modules, name, stub)
