"""The Responses API on the bundled model, as users of the official client go about it."""

from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from lookm.demo.scenes import Scene
from server.example_request import data_url

pytestmark = pytest.mark.e2e

KEPT: Any = {"extra_body": {"kv_cache": "look-m@0.2"}}
FIELDS: Any = {"model": "llava-demo", "temperature": 0, "max_output_tokens": 32}


def picture(kind: str, colour: str) -> Any:
    url = data_url(Scene(kind=kind, colour=colour))
    return {"type": "input_image", "image_url": url, "detail": "auto"}


QUESTION: Any = [
    {
        "role": "user",
        "content": [
            picture("circle", "red"),
            picture("star", "blue"),
            {"type": "input_text", "text": "What is in image 2?"},
        ],
    }
]


def test_a_chat_about_images_goes_on_by_the_id_of_its_last_response(ask: openai.OpenAI) -> None:
    """Whole and streamed; what was computed is known, and the answer is the written-out chat's."""
    first = ask.responses.create(**FIELDS, input=QUESTION, **KEPT)
    assert "star" in first.output_text
    usage = first.usage
    assert usage.model_extra["kv_cache"]["method"] == "look-m"
    assert usage.model_extra["kv_cache"]["kept_tokens"] < 0.25 * usage.input_tokens
    with ask.responses.stream(**FIELDS, input=QUESTION, **KEPT) as stream:
        grown = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert grown[-1] == final.output_text == first.output_text
    again = "What is in image 1?"
    then = ask.responses.create(**FIELDS, input=again, previous_response_id=first.id, **KEPT)
    assert "circle" in then.output_text
    assert then.usage.input_tokens_details.cached_tokens > 100
    turn: Any = {"role": "user", "content": again}
    written = ask.responses.create(
        **FIELDS, input=[*QUESTION, *first.output, turn], store=False, **KEPT
    )
    assert written.output_text == then.output_text
    assert written.usage.input_tokens == then.usage.input_tokens


class Picture(BaseModel):
    """What an image shows."""

    kind: Literal["circle", "star", "square"]
    sure: bool


def test_an_answer_is_parsed_into_a_model(ask: openai.OpenAI) -> None:
    parsed = ask.responses.parse(
        model="llava-demo", input=QUESTION, text_format=Picture, temperature=0, max_output_tokens=99
    )
    assert isinstance(parsed.output_parsed, Picture)
    logged = ask.responses.create(**FIELDS, input=QUESTION, top_logprobs=2)
    entries = logged.output[0].content[0].logprobs
    assert "".join(entry.token for entry in entries) == logged.output_text
