"""Every family's model can be asked without its weights, and says what does not fit it."""

from collections.abc import Callable
from typing import Any

import pytest

from lookm.errors import ModelError
from lookm.models.judged import check_image, check_text
from lookm.models.processor import Processor
from lookm.models.weightless import weightless
from tests.lookm.models.hub_shape import built
from tests.lookm.models.toy_processors import without_torchvision
from tests.lookm.models.toys import TOYS


def sized(**values: Any) -> Callable[[Any, Any], Any]:
    """Other attributes of the image processor."""
    return lambda config, processor: vars(processor.image_processor).update(values)


def check(model: Any, processor: Processor) -> None:
    check_image(model, processor)
    check_text(model, processor)


def parts(name: str) -> tuple[Any, Any]:
    model, processor = built(name)
    return model.config, processor


@pytest.mark.parametrize("name", TOYS)
def test_a_model_and_its_own_processor_fit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_asked(*_: Any) -> None:
        raise AssertionError("the tower could not be asked")

    without_torchvision(monkeypatch)
    config, hf_processor = parts(name)
    processor = Processor(hf_processor, config, name="toy")
    monkeypatch.setattr("lookm.models.judged.not_asked", not_asked)
    check(weightless(config), processor)


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("qwen2_vl", sized(merge_size=1), "places|fails on it"),
        ("qwen2_5_vl", sized(merge_size=4), "places"),
        ("qwen3_vl", sized(patch_size=8), "fails on it"),
        ("pixtral", lambda _, processor: vars(processor).update(patch_size=16), "places"),
        ("mistral3", lambda _, processor: vars(processor).update(spatial_merge_size=1), "places"),
        ("smolvlm", sized(max_image_size={"longest_edge": 96}), "places"),
        (
            "qwen2_vl",
            lambda config, _: setattr(config.vision_config, "num_heads", 3),
            "fails on it",
        ),
        (
            "qwen2_vl",
            lambda config, _: config.text_config.rope_parameters.update(mrope_section=[4, 6, 6]),
            "fails on any text",
        ),
    ],
)
def test_what_does_not_fit_is_said(
    name: str, spoil: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_torchvision(monkeypatch)
    config, hf_processor = parts(name)
    spoil(config, hf_processor)
    processor = Processor(hf_processor, config, name="toy")
    with pytest.raises(ModelError, match=said) as caught:
        check(weightless(config), processor)
    assert "\n" not in str(caught.value)
