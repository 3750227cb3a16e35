"""Prompts: our ids and pixels are those of the family's own processor for the same chat."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lookm import RequestError
from lookm.errors import ModelError
from lookm.models import loading
from lookm.models.adapter import Adapter
from lookm.models.families import FAMILIES
from lookm.models.image_layouts import arranged, least_tokens
from lookm.models.processor import Processor
from tests.lookm.models.toy_processors import PROCESSORS, without_torchvision
from tests.lookm.models.toys import TOYS

FEATURE = {
    "pixtral": "[IMG]",
    "mistral3": "[IMG]",
    "gemma3": "<image_soft_token>",
    "internvl": "<IMG_CONTEXT>",
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|image_pad|>"),
}


@dataclasses.dataclass
class Config:
    """What `Processor` reads of a model's config."""

    model_type: str
    image_token_id: int
    max_position_embeddings: int = 512

    def get_text_config(self) -> "Config":
        return self


def paired(name: str) -> tuple[Any, Processor]:
    """A family's own processor, and ours over it."""
    hf_processor = PROCESSORS[name]()
    token = hf_processor.tokenizer.convert_tokens_to_ids(FEATURE.get(name, "<image>"))
    config = Config(TOYS[name].row.model_type, token)
    return hf_processor, Processor(hf_processor, config, name=name)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    without_torchvision(monkeypatch)
    return paired


def picture(width: Any, height: Any, seed: int = 0) -> Any:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PICTURES = [picture(70, 40), picture(30, 90, 1), picture(48, 48, 2)]
TEXTS = ["\nWhat is this?\n\n", "Here ", "\n\nIs it the image?"]


def chat(num_images: Any, *, pictures: Any = ()) -> Any:
    """Each picture before its text, then text alone; with the pictures for transformers."""
    parts = []
    for i, text in enumerate(TEXTS):
        if i < num_images:
            parts.append({"type": "image", **({"image": pictures[i]} if pictures else {})})
        parts.append({"type": "text", "text": text})
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}
    last = {"role": "user", "content": [{"type": "text", "text": "And?\n"}]}
    return [{"role": "user", "content": parts}, answer, last]


def theirs(hf_processor: Any, num_images: Any) -> Any:
    if hf_processor.chat_template is None:  # PaliGemma: images, then one line of text
        text = "<image>" * num_images + "".join(TEXTS) + "Yes.And?\n"
        return hf_processor(text=[text], images=[PICTURES[:num_images]])
    return hf_processor.apply_chat_template(
        chat(num_images, pictures=PICTURES),
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
    )


def flat(ids: Any) -> Any:
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    return ids[0] if isinstance(ids[0], list) else ids


@pytest.mark.parametrize(
    ("name", "num_images"),
    [(n, i) for n in PROCESSORS for i in range(4) if (n, i) != ("paligemma", 0)],  # it refuses 0
)
def test_prompt_ids_equal_the_processors_own(name: Any, num_images: Any, build: Any) -> None:
    hf_processor, ours = build(name)
    images = [ours.image(p, str(i)) for i, p in enumerate(PICTURES[:num_images])]
    ids = ours.prompt(chat(num_images), images)
    expected = theirs(hf_processor, num_images)
    assert list(ids) == flat(expected["input_ids"])
    counted = sum(image.num_tokens for image in arranged(images, ours.family))
    assert ids.count(ours.image_token_id) == counted


def test_tokenizing_a_placeholder_once_gives_the_ids_of_all_of_them(
    build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside one that a user spelled out, and where text touches it."""
    hf_processor, ours = build("llava")
    images = [ours.image(picture, str(n)) for n, picture in enumerate(PICTURES)]
    spelled = f"a{hf_processor.image_token}b  "
    parts: list[dict[str, str]] = [{"type": "text", "text": spelled}]
    for _ in images:
        parts += [{"type": "image"}, {"type": "text", "text": spelled}]
    messages = [{"role": "user", "content": parts}]
    lengths: list[int] = []
    own = ours._chat_ids

    def counted(text: str) -> Any:
        lengths.append(len(text))
        return own(text)

    monkeypatch.setattr(ours, "_chat_ids", counted)
    once = ours.prompt(messages, images)
    monkeypatch.setattr(ours, "_ids_of_plain", lambda *_: None)
    assert once == ours.prompt(messages, images)
    assert once.count(ours.image_token_id) == sum(image.num_tokens for image in images)
    assert lengths[0] < lengths[-1], "the short way was not taken"


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_the_processors_own(name: Any, build: Any) -> None:
    """One image at a time, side by side, where the family pads none of them."""
    hf_processor, ours = build(name)
    for pictures in (PICTURES[:1], PICTURES[2:] * 2):
        images = [ours.image(p, str(i)) for i, p in enumerate(pictures)]
        images = arranged(images, ours.family)
        text = [hf_processor.image_token * len(pictures)]
        expected = hf_processor(text=text, images=[pictures])
        for tensor in ours.family.image_tensors:
            if tensor not in expected or tensor == "batch_num_images":
                continue
            own = np.stack([np.asarray(value) for value in expected[tensor]])
            got = [image.tensors[tensor] for image in images]
            assert np.array_equal(np.concatenate(got, axis=1 if own.shape[0] == 1 else 0), own) or (
                np.array_equal(np.concatenate(got), own)
            )
            assert got[0].dtype in (np.float32, np.int64, np.int32, np.bool_)


@pytest.mark.parametrize("name", PROCESSORS)
def test_features_of_a_processed_image_fill_its_tokens(name: Any, build: Any) -> None:
    _, ours = build(name)
    adapter = Adapter(TOYS[name].model(), ours.family)
    for images in ([ours.image(PICTURES[0], "a")], [ours.image(p, "b") for p in PICTURES]):
        for image in arranged(images, ours.family):
            features_FNE = adapter.vision.encode_image(image)
            assert features_FNE.shape[1:] == (image.num_tokens, 64)
            assert features_FNE.isfinite().all()


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_placeholder_spelled_out_in_the_text_is_text(name: Any, build: Any) -> None:
    hf_processor, ours = build(name)
    spelled = [{"role": "user", "content": [{"type": "text", "text": hf_processor.image_token}]}]
    assert ours.image_token_id not in ours.prompt(spelled, [])
    image = ours.image(PICTURES[2], "d")
    with pytest.raises(RequestError, match="placed 0 images, the request has 1"):
        ours.prompt(spelled, [image])
    with pytest.raises(RequestError, match="placed 2 images, the request has 1"):
        ours.prompt(chat(2), [image])


def test_an_image_alone_and_among_others_have_their_own_pixels_and_tokens(build: Any) -> None:
    _, ours = build("llava_onevision")
    image = ours.image(PICTURES[0], "d")
    (alone,) = arranged([image], ours.family)
    among, _ = arranged([image, image], ours.family)
    assert (alone.digest, among.digest) == ("d", "d/among-others")
    assert (alone.num_tokens, among.num_tokens) == (image.num_tokens, 10)
    assert alone.tensors["pixel_values"].shape[:2] == (1, 5)
    assert among.tensors["pixel_values"].shape[:2] == (1, 1)


def test_a_missing_package_is_refused_with_the_command() -> None:
    family = FAMILIES["qwen2_vl"]
    with pytest.raises(ModelError, match=r"Qwen2-VL needs no_such_thing, .* not installed .*pip"):
        loading.require("no_such_thing", family)
    loading.require("numpy", family)


def test_a_package_that_does_not_load_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap of PyPI's torchvision beside a CPU build of torch."""
    broken = tmp_path / "torchvision.py"
    broken.write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "torchvision", None)  # put back: what it did to a process
    monkeypatch.delitem(sys.modules, "torchvision")
    with pytest.raises(ModelError, match=r"torchvision, which does not load .*whl/cpu"):
        loading.require("torchvision", FAMILIES["smolvlm"])
    assert torch.tensor([1]).sum() == 1


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_large_image_takes_no_fewer_tokens_than_a_picture(build: Any, name: Any) -> None:
    _, processor = build(name)
    assert processor.large_image().num_tokens >= processor.image(PICTURES[0], "a").num_tokens


@pytest.mark.parametrize("name", PROCESSORS)
def test_frames_of_a_video_stand_behind_their_times_in_every_family(name: Any, build: Any) -> None:
    """Where a template shows all images of a turn first, the times follow in their order."""
    _, ours = build(name)
    times = ["0:00.0", "0:01.5", "1:02:03.5"]
    parts: list[dict[str, str]] = []
    for time in times:
        parts += [{"type": "text", "text": f"\n{time}\n"}, {"type": "image"}]
    parts.append({"type": "text", "text": "What happens?"})
    messages = [{"role": "user", "content": parts}]
    rendered = ours.rendered(messages)
    places = [rendered.index(f"{time}\n") for time in times]
    assert places == sorted(places)
    images = [ours.image(each, str(n)) for n, each in enumerate(PICTURES)]
    ids = ours.prompt(messages, images)
    counted = sum(image.num_tokens for image in arranged(images, ours.family))
    assert ids.count(ours.image_token_id) == counted


def test_an_image_of_two_layouts_takes_at_least_what_it_takes_among_others(build: Any) -> None:
    _, ours = build("llava_onevision")
    image = ours.image(PICTURES[0], "a")
    (among, _) = arranged([image, image], ours.family)
    assert least_tokens(image) == among.num_tokens < image.num_tokens
