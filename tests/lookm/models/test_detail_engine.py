"""One picture in several details, to one engine: each answered as transformers does."""

from pathlib import Path
from typing import Any

import pytest

from lookm import Engine, EngineConfig, Request, Sampling
from lookm.models.detail import Detail
from tests.lookm.models.test_checkpoints import checkpoint
from tests.lookm.models.test_processor import picture
from tests.lookm.models.transformers_answer import answer_to

NUM_TOKENS = 12
WORDS = "What is in the picture? " * 12
SHOWN = picture(300, 190)


def theirs(model: Any, processor: Any, settings: dict[str, Any]) -> tuple[list[int], list[int]]:
    """transformers' prompt and answer, its processor called with a step's settings."""
    content = [{"type": "text", "text": WORDS}, {"type": "image", "image": SHOWN}]
    content.append({"type": "text", "text": WORDS})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"images_kwargs": settings},
    )
    return inputs["input_ids"][0].tolist(), answer_to(model, inputs, NUM_TOKENS)


@pytest.mark.parametrize("policy", ["full", "look-m@0.3"])
def test_details_share_text_before_the_image_and_nothing_after(policy: str, tmp_path: Path) -> None:
    model, processor = checkpoint("idefics3", tmp_path)
    config = EngineConfig(
        model=str(tmp_path),
        device="cpu",
        dtype="float32",
        kv_cache_bytes=2**23,
        prompt_store_bytes=2**26,
        parking=False,
        attention="reference",
    )
    engine = Engine.from_config(config)
    ours = engine.processor
    ladder = list(ours.family.ladder.steps(ours._pictures._asked(SHOWN.size)))
    assert len(ladder) == 2
    content = [{"type": "text", "text": WORDS}, {"type": "image"}, {"type": "text", "text": WORDS}]
    answers: dict[str, list[Any]] = {}
    for turn in range(3):
        for step in ladder:
            image = ours.image(SHOWN, "d", detail=Detail("high", step.num_tokens))
            ids = ours.prompt([{"role": "user", "content": content}], [image])
            sampling = Sampling(max_tokens=NUM_TOKENS, ignore_eos=True)
            request = Request(f"{turn}-{step.name}", ids, (image,), policy, sampling=sampling)
            events = list(engine.generate([request]))
            tokens = [event.token_id for event in events]
            answers.setdefault(step.name, tokens)
            assert answers[step.name] == tokens, "what is known changes no answer"
            before = ids.index(ours.image_token_id)
            cached = events[-1].cache.cached_tokens
            if turn:
                assert cached > before + step.num_tokens, "the whole image is known"
            else:
                assert cached <= before, "an image in another detail is another image"
            if policy == "full":
                assert (list(ids), tokens) == theirs(model, processor, dict(step.settings))
    first, second = answers.values()
    assert first != second
