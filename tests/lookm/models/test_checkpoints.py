"""From a directory to answers: what transformers loads and generates, the engine does too.

Only families whose processors can be loaded without torchvision; the others are refused.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from lookm import Engine, EngineConfig, ModelInfo, Processor, Request, Sampling
from lookm.errors import ModelError
from lookm.models.loading import load_model
from tests.lookm.models import hub_shape
from tests.lookm.models.hub_shape import as_published
from tests.lookm.models.toys import TOYS
from tests.lookm.models.transformers_answer import answer_to, inputs_of

LOADABLE = ("llava", "llava_next", "idefics3", "gemma3", "paligemma")
PICTURES = [
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (h, w, 3), dtype=np.uint8))
    for i, (h, w) in enumerate(((40, 70), (48, 48)))
]


def checkpoint(name: str, folder: Path) -> tuple[Any, Any]:
    """A tiny model and its processor, saved as a checkpoint is; and both as loaded again."""
    model, processor = hub_shape.built(name)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder, max_shard_size="100KB")
    processor.save_pretrained(folder)
    loaded = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return loaded, hf.AutoProcessor.from_pretrained(folder)


def theirs(model: Any, processor: Any) -> tuple[list[int], list[int]]:
    """transformers' prompt and greedy answer for two pictures and a question."""
    parts = [{"type": "image", "image": picture} for picture in PICTURES]
    content = [*parts, {"type": "text", "text": "What is it?"}]
    inputs = inputs_of(processor, [{"role": "user", "content": content}])
    return inputs["input_ids"][0].tolist(), answer_to(model, inputs, 12)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("name", LOADABLE)
def test_a_checkpoint_answers_as_transformers_does(
    name: Any, published: bool, tmp_path: Path
) -> None:
    prompt_ids, expected = theirs(*checkpoint(name, tmp_path))
    if published:
        as_published(tmp_path)
    config = EngineConfig(
        model=str(tmp_path),
        device="cpu",
        dtype="float32",
        kv_cache_bytes=2**22,
        attention="reference",
    )
    engine = Engine.from_config(config)
    assert isinstance(engine.info, ModelInfo)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is it?"}]
    images = tuple(engine.processor.image(p, str(i)) for i, p in enumerate(PICTURES))
    ids = engine.processor.prompt([{"role": "user", "content": content}], images)
    assert list(ids) == prompt_ids
    request = Request("a", ids, images, sampling=Sampling(max_tokens=12, ignore_eos=True))
    got = [event.token_id for event in engine.generate([request])]
    assert got == expected
    assert len(set(got)) > 2


def test_a_family_whose_processor_cannot_load_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TOYS["qwen2_vl"].config().save_pretrained(tmp_path / "model")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision", None)  # put back: what it did to a process
    monkeypatch.delitem(sys.modules, "torchvision")
    with pytest.raises(ModelError, match=r"Qwen2-VL needs torchvision, .*pip install"):
        Processor.load(str(tmp_path / "model"))


def test_a_family_without_a_row_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    hf.LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"'llama' is not supported; supported: gemma3, .*smolvlm"):
        Processor.load(str(tmp_path))


def test_softcapped_attention_is_refused_before_the_weights_are_loaded(tmp_path: Path) -> None:
    config = TOYS["paligemma"].config()
    text = hf.Gemma2Config(vocab_size=96, hidden_size=64)
    vision = config.vision_config
    hf.PaliGemmaConfig(vision_config=vision, text_config=text).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="PaliGemma 1"):
        load_model(str(tmp_path), dtype=torch.float32, device="cpu")
