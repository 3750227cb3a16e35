"""A tiny config of each family: the real classes at toy size."""

import functools
from typing import Any

import transformers as hf

from tests.lookm.models.toy_images import CLOSE, OPEN, PINPOINTS
from tests.lookm.tiny import IMAGE, VOCABULARY

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # logits far apart, so that greedy choices are no near-ties
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 8,
    "initializer_range": 0.3,
}


def _qwen(text_class: Any, **vision: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    return {
        "text_config": text_class(**TEXT, rope_parameters=rope).to_dict(),
        "vision_config": {
            "depth": 2,
            "num_heads": 2,
            "in_channels": 3,
            "patch_size": 4,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "initializer_range": 0.3,
            **vision,
        },
        "image_token_id": IMAGE,
        "video_token_id": 95,
        "vision_start_token_id": OPEN,
        "vision_end_token_id": CLOSE,
    }


def qwen2() -> Any:
    vision = {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    return hf.Qwen2VLConfig(**_qwen(hf.models.qwen2_vl.Qwen2VLTextConfig, **vision))


def qwen25() -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    text = hf.models.qwen2_5_vl.Qwen2_5_VLTextConfig
    return hf.Qwen2_5_VLConfig(**_qwen(text, **vision))


def qwen3() -> Any:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    text = functools.partial(hf.models.qwen3_vl.Qwen3VLTextConfig, head_dim=16)
    return hf.Qwen3VLConfig(**_qwen(text, **vision))


def llava(vision: Any, **more: Any) -> Any:
    more = {"text_config": hf.LlamaConfig(**TEXT), "vision_feature_layer": -1, **more}
    return hf.LlavaConfig(vision_config=vision, image_token_index=IMAGE, **more)


def pixtral_vision() -> Any:
    return hf.PixtralVisionConfig(**VISION, head_dim=16)


def mistral3() -> Any:
    return hf.Mistral3Config(
        vision_config=pixtral_vision(),
        text_config=hf.MistralConfig(**TEXT, sliding_window=None, head_dim=16),
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )


def idefics(config_class: Any) -> Any:
    return config_class(
        vision_config={**VISION, "image_size": 32},
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
    )


def gemma3() -> Any:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    text = {**TEXT, "num_hidden_layers": 4, "head_dim": 16, "query_pre_attn_scalar": 16}
    return hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**VISION),
        text_config=hf.Gemma3TextConfig(**text, sliding_window=8, layer_types=kinds),
        image_token_index=IMAGE,
        boi_token_index=OPEN,
        eoi_token_index=CLOSE,
        mm_tokens_per_image=9,
        initializer_range=0.3,
        tie_word_embeddings=False,  # tied, every answer is one token again and again
    )


def paligemma() -> Any:
    text = hf.GemmaConfig(**TEXT, head_dim=16)
    text.final_logit_softcapping = 5.0
    return hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**VISION),
        text_config=text,
        image_token_index=IMAGE,
        vocab_size=VOCABULARY,
        projection_dim=64,
        hidden_size=64,
        tie_word_embeddings=False,
    )


def internvl() -> Any:
    vision = {**VISION, "image_size": [32, 32], "patch_size": [8, 8]}
    return hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**vision),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=4,
    )


def anyres(config_class: Any, vision: Any, text: Any) -> Any:
    return config_class(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
    )
