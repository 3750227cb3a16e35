"""A checkpoint that can be shown tools: a tiny random model with a chat template that shows them.

What it says is noise, so only what is enforced can be expected of it.
"""

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken

from tests.lookm.models.toy_processors import PROCESSORS
from tests.lookm.models.toys import TOYS
from tests.server.tools.templates import QWEN

CALL_TOKENS = [AddedToken(each, special=False) for each in ("<tool_call>", "</tool_call>")]


def save_toy_with_tools(folder: Path, template: str = QWEN) -> None:
    """A LLaVA whose tokenizer has Qwen's call tokens."""
    processor: Any = PROCESSORS["llava"]()
    processor.tokenizer.add_tokens(CALL_TOKENS)
    processor.chat_template = template
    config = TOYS["llava"].config()
    config.text_config.vocab_size = len(processor.tokenizer)
    config.text_config.max_position_embeddings = 4096
    config.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model = hf.AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
