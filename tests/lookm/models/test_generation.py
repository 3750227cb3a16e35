"""What a checkpoint says of sampling, read or refused."""

from typing import Any

import pytest

from lookm.errors import ModelError
from lookm.models.generation import GenerationDefaults, generation_defaults


def test_values_that_are_there_hold_and_others_are_openais() -> None:
    # Qwen2.5-VL's file.
    file = {
        "bos_token_id": 151643,
        "pad_token_id": 151643,
        "do_sample": True,
        "eos_token_id": [151645, 151643],
        "repetition_penalty": 1.05,
        "temperature": 0.000001,
        "transformers_version": "4.49.0",
    }
    defaults = generation_defaults(file)
    assert defaults == GenerationDefaults(temperature=0.000001, repetition_penalty=1.05)
    assert str(defaults) == "temperature 1e-06, repetition_penalty 1.05"
    assert str(generation_defaults({})) == "OpenAI's"
    assert generation_defaults({"top_k": -1, "min_p": None}) == GenerationDefaults()


@pytest.mark.parametrize(
    "file",
    [
        {"temperature": "hot"},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 7},
        {"top_k": 1.5},
        {"min_p": True},
        {"repetition_penalty": 0},
    ],
)
def test_a_value_out_of_range_is_refused_by_name(file: dict[str, Any]) -> None:
    (field,) = file
    with pytest.raises(ModelError, match=rf"m: generation_config.json has {field} .*--generation"):
        generation_defaults(file, "m")
