"""Images in other detail: what transformers answers, its processor called with the settings."""

import io
from typing import Any

import openai
import pytest
from PIL import Image

from lookm.models.detail import Step
from lookm.models.processor import Processor
from tests.families.served import NUM_TOKENS, Asked, Served
from tests.lookm.models.test_processor import picture
from tests.lookm.models.transformers_answer import answer_to
from tests.server.requests import data_url

WORDS = "What is in the picture?"
SHOWN = picture(880, 300)  # Gemma 3 makes crops of 256 pixels at least


def part(**asked: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    SHOWN.save(buffer, "PNG")
    return {"type": "image_url", "image_url": {"url": data_url(buffer.getvalue()), **asked}}


def ladder_of(served: Served) -> list[Step]:
    ours = Processor(served.processor, served.model.config, name="ours")
    return list(ours.family.ladder.steps(ours._pictures._asked(SHOWN.size)))


def answer(served: Served, **asked: Any) -> Any:
    content = [part(**asked), {"type": "text", "text": WORDS}]
    return served.client.chat.completions.create(
        model=served.served_name,
        messages=[{"role": "user", "content": content}],
        temperature=0,
        max_tokens=NUM_TOKENS,
        extra_body={"ignore_eos": True},
    )


def expected(served: Served, step: Step) -> tuple[Asked, list[int]]:
    """As anyone calls transformers, with a step's settings and the picture in its size."""
    given = SHOWN if step.size is None else SHOWN.resize(step.size, Image.Resampling.LANCZOS)
    processor, family = served.processor, served.case.family
    if processor.chat_template is None:  # PaliGemma
        inputs = processor(text=[f"<image>{WORDS}"], images=[[given]], return_tensors="pt")
    else:
        content = [{"type": "image", "image": given}, {"type": "text", "text": WORDS}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"images_kwargs": dict(step.settings)},
        )
    tensors = {name: tensor for name, tensor in inputs.items() if name != "labels"}
    token = served.model.config.image_token_id
    asked = Asked(tensors, token, family.prefill == "prefix", family.position_rows)
    return asked, answer_to(served.model, tensors, NUM_TOKENS)


def test_under_each_budget_answers_are_those_of_generate(served: Served) -> None:
    ladder = ladder_of(served)
    for step in {
        each.name: each for each in (ladder[0], ladder[len(ladder) // 2], ladder[-1])
    }.values():
        got = answer(served, detail="high", max_tokens_per_image=step.num_tokens)
        details = got.usage.prompt_tokens_details
        assert details.tokens_per_image == [details.image_tokens] == [step.num_tokens]
        if step.among:  # transformers lays out an image among others so, and no image alone
            continue
        if served.case.family.model_type == "mistral3" and step.num_tokens == 1:
            continue  # transformers fails on it
        asked, tokens = expected(served, step)
        assert got.usage.prompt_tokens == len(asked.is_image)
        assert int(asked.is_image.sum()) == step.num_tokens
        served.compare(got, tokens)


def test_levels_are_told_apart_and_a_budget_below_all_is_refused(served: Served) -> None:
    ladder = ladder_of(served)
    counts = {level: answer(served, detail=level) for level in ("low", "auto", "high")}
    low, auto, high = (got.usage.prompt_tokens_details.image_tokens for got in counts.values())
    assert low <= auto <= high == ladder[0].num_tokens
    assert auto == next(step.num_tokens for step in ladder if not step.name)
    fewest = ladder[-1].num_tokens
    if fewest == 1:
        return
    with pytest.raises(openai.BadRequestError, match=r"takes at least \d+ tokens") as refused:
        answer(served, max_tokens_per_image=fewest - 1)
    assert refused.value.param == "messages[0].content[0].image_url.max_tokens_per_image"
