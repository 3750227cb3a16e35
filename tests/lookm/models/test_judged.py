"""A checkpoint whose parts do not fit each other is refused before a weight is read."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lookm.errors import ModelError
from lookm.models.adapter import Adapter
from lookm.models.judged import judged_processor
from lookm.models.loading import find
from tests.lookm.models.hub_shape import drop, edit, edit_weights, write
from tests.lookm.models.toys import TOYS, filled

PROCESSOR = "processor_config.json"
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LAST_ONE = (
    "{% for part in messages[-1].content %}{% if part.type == 'image' %}<image>{% else %}"
    "{{ part.text }}{% endif %}{% endfor %}"
)
TWICE = (
    "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}"
    "<image><image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)


def judged(folder: Path) -> Any:
    return judged_processor(find(str(folder)), name="toy")


def changed(file: str, **values: Any) -> Callable[[Path], Any]:
    return lambda folder: edit(folder / file, lambda held: held.update(values))


def without(file: str, name: str) -> Callable[[Path], Any]:
    return lambda folder: edit(folder / file, lambda held: held.pop(name))


def image_processor(**values: Any) -> Callable[[Path], Any]:
    return lambda folder: edit(
        folder / PROCESSOR, lambda held: held["image_processor"].update(values)
    )


def text_config(**values: Any) -> Callable[[Path], Any]:
    return lambda folder: edit(
        folder / "config.json", lambda held: held["text_config"].update(values)
    )


def written(file: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / file).write_text(text)


def of_idefics(file: str) -> Callable[[Path], Any]:
    def copy(folder: Path) -> None:
        other = write(folder.parent / "other", "idefics3")
        shutil.copy(other / file, folder / file)

    return copy


@pytest.mark.parametrize("name", ["llava", "llava_next", "idefics3", "gemma3", "paligemma"])
def test_parts_of_one_model_fit(tmp_path: Path, name: str) -> None:
    assert judged(write(tmp_path, name)).small_image().num_tokens


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("llava", changed(PROCESSOR, patch_size=14), "9 features for 1 places"),
        (
            "llava",
            changed(PROCESSOR, vision_feature_select_strategy="full"),
            "9 features for 10 places",
        ),
        ("llava", without(PROCESSOR, "patch_size"), "fails on a picture"),
        ("gemma3", changed(PROCESSOR, image_seq_length=16), "9 features for 16 places"),
        (
            "llava",
            image_processor(crop_size={"height": 48, "width": 48}, size={"shortest_edge": 48}),
            "the model fails on it",
        ),
        ("llava", changed("config.json", vision_feature_layer=-9), "the model fails on it"),
        ("llava", image_processor(image_mean=[0.5, 0.5]), "fails on a picture"),
        ("llava", of_idefics("tokenizer.json"), "tokens, vocab_size of config.json is"),
        ("llava", written("tokenizer.json", "{}"), "tokenizer in "),
        ("llava", changed("special_tokens_map.json", eos_token={"content": 5}), "tokenizer in "),
        ("llava", image_processor(image_processor_type="Nope"), PROCESSOR),
        ("llava", written("chat_template.jinja", LAST_ONE), "loses the text of the role 'system'"),
        ("llava", written("chat_template.jinja", TWICE), "loses a user's text or image"),
        (
            "llava",
            written("chat_template.jinja", "{% for i in range(10**9) %}{% endfor %}"),
            "Range too big",
        ),
        ("llava", lambda f: edit_weights(f, lambda w: drop(w, "lm_head")), "lm_head.weight"),
        ("llava", changed("config.json", vision_feature_select_strategy="bogus"), "config.json"),
        ("llava", changed("config.json", image_token_index=-200), "is None to the tokenizer"),
        ("idefics3", changed(PROCESSOR, image_seq_len=9), "features for"),
        ("idefics3", image_processor(max_image_size={"longest_edge": 96}), "features for"),
        ("llava", text_config(rope_parameters=ROPE | {"rope_theta": 0}), "rope_theta"),
        ("llava", text_config(rope_parameters=ROPE | {"rope_theta": -5.0}), "rope_theta"),
        (
            "llava",
            text_config(rope_parameters=ROPE | {"rope_type": "linear", "factor": 0}),
            "rope_scaling",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(
    tmp_path: Path, name: str, spoil: Callable[[Path], Any], said: str
) -> None:
    folder = write(tmp_path / "model", name)
    (folder / "special_tokens_map.json").write_text("{}")
    judged(folder)
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        judged(folder)
    assert caught.value.param == "model"
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_weight_in_two_shards_is_named_with_both(tmp_path: Path) -> None:
    write(tmp_path, max_shard_size="100KB")
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    weights = load_file(second)
    name, weight = next(iter(load_file(first).items()))
    save_file({**weights, name: torch.zeros_like(weight)}, second, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{second.name} and {first.name} both hold '{name}'"):
        find(str(tmp_path))


def test_without_a_template_it_can_still_complete_text(tmp_path: Path) -> None:
    (write(tmp_path) / "chat_template.jinja").unlink()
    processor = judged(tmp_path)
    assert not processor.has_template
    assert processor.text("hello")


def test_weights_that_give_no_numbers_are_refused() -> None:
    model = TOYS["llava"].model()
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(ModelError, match="no numbers in float32"):
        Adapter(model, TOYS["llava"].row)


@pytest.mark.parametrize("window", [0, -4])
def test_a_window_that_sees_nothing_is_refused(window: int) -> None:
    config = TOYS["mistral3"].config()
    config.text_config.sliding_window = window
    with pytest.raises(ModelError, match=f"a window of {window} tokens"):
        Adapter(filled(config), TOYS["mistral3"].row)
