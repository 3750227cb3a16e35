"""Detail: every step of a family's ladder is what its processor then makes of a picture."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from docs.generate.detail import PUBLISHED, asked
from lookm import RequestError
from lookm.models.adapter import Adapter
from lookm.models.detail import Detail, Step, choice, choose
from lookm.models.image_layouts import arranged
from lookm.models.processor import Processor
from tests.lookm.models.test_processor import paired, picture
from tests.lookm.models.toy_processors import PROCESSORS, without_torchvision
from tests.lookm.models.toys import TOYS

SIZES = [(190, 130), (90, 210), (48, 48), (300, 12), (17, 9)]
LONG = [(880, 300), (300, 1100)]  # Gemma 3 makes crops of 256 pixels or more
FIXED = ("llava", "paligemma")


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    without_torchvision(monkeypatch)
    return paired


def pictures(name: str) -> list[Image.Image]:
    return [picture(*size) for size in (LONG if name == "gemma3" else SIZES)]


def ladder_of(ours: Processor, size: tuple[int, int]) -> list[Step]:
    """Every way in which it can show a picture."""
    return list(ours.family.ladder.steps(ours._pictures._asked(size)))


@pytest.mark.parametrize("name", PROCESSORS)
def test_each_step_takes_the_tokens_it_says_and_fewer_than_the_one_before(
    name: str, build: Any
) -> None:
    _, ours = build(name)
    lengths = []
    for shown in pictures(name):
        ladder = ladder_of(ours, shown.size)
        counts = [step.num_tokens for step in ladder]
        assert counts == sorted(set(counts), reverse=True)
        assert [step.name for step in ladder].count("") == 1
        assert counts[-1] >= ours.fewest_image_tokens
        names = {}
        for step in ladder:
            image = ours.image(shown, "d", detail=Detail("high", step.num_tokens))
            assert image.num_tokens == step.num_tokens
            names[image.digest] = image
        assert len(names) == len(ladder), "another way has another name"
        assert names["d"].num_tokens == ours.image(shown, "d").num_tokens
        lengths.append(len(ladder))
    assert max(lengths) > 1 or name in FIXED


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_budget_below_the_last_step_is_refused_with_what_would_do(name: str, build: Any) -> None:
    _, ours = build(name)
    shown = pictures(name)[0]
    fewest = ladder_of(ours, shown.size)[-1].num_tokens
    for level in ("low", "auto", "high"):
        if fewest > 1:
            message = f"at least {fewest} tokens, and max_tokens_per_image is {fewest - 1}"
            with pytest.raises(RequestError, match=message) as refusal:
                ours.image(shown, "d", detail=Detail(level, fewest - 1))
            assert refusal.value.param == "max_tokens_per_image"
        assert ours.image(shown, "d", detail=Detail(level, fewest)).num_tokens == fewest
    if name in FIXED:
        assert ours.fewest_image_tokens == fewest


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_processor_under_the_same_settings(name: str, build: Any) -> None:
    """Called as anyone would: the settings as arguments, the picture resized where a step does."""
    hf_processor, ours = build(name)
    for shown in pictures(name):
        for step in ladder_of(ours, shown.size)[:8]:
            image = ours.image(shown, "d", detail=Detail("high", step.num_tokens))
            given = (
                shown if step.size is None else shown.resize(step.size, Image.Resampling.LANCZOS)
            )
            copies = 2 if step.among else 1
            text = (hf_processor.image_token if name != "gemma3" else "<start_of_image>") * copies
            theirs = hf_processor(
                text=[text], images=[[given] * copies], return_tensors="np", **step.settings
            )
            for tensor in ours.family.image_tensors:
                if tensor not in theirs:
                    continue
                expected = np.asarray(theirs[tensor])
                got = image.tensors[tensor]
                assert np.array_equal(got, expected[: len(got)]), (step, tensor)
            num_theirs = np.asarray(theirs["input_ids"]).tolist()[0].count(ours.image_token_id)
            assert num_theirs == copies * step.num_tokens


@pytest.mark.parametrize("name", PROCESSORS)
def test_features_fill_the_tokens_of_every_step(name: str, build: Any) -> None:
    _, ours = build(name)
    adapter = Adapter(TOYS[name].model(), ours.family)
    shown = pictures(name)[0]
    for step in ladder_of(ours, shown.size)[::3]:
        image = ours.image(shown, "d", detail=Detail("high", step.num_tokens))
        features_FNE = adapter.vision.encode_image(image)
        assert features_FNE.shape[1:] == (step.num_tokens, 64)
        for each in arranged([image, image], ours.family):
            assert adapter.vision.encode_image(each).shape[1] == each.num_tokens


@pytest.mark.parametrize("name", PROCESSORS)
def test_low_is_512_pixels_squared_or_the_fewest_tokens_and_auto_is_the_checkpoints_own(
    name: str, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours = build(name)
    shown = pictures(name)[0]
    ladder = ladder_of(ours, shown.size)
    own = ours.image(shown, "d")
    plain = ours.image(shown, "d", detail=Detail("auto", own.num_tokens))
    assert (plain.digest, plain.num_tokens) == ("d", own.num_tokens)
    high = ours.image(shown, "d", detail=Detail("high"))
    assert high.num_tokens == ladder[0].num_tokens
    assert (high.digest == "d") == (name != "gemma3"), "auto is as fine, but for crops"
    monkeypatch.setattr(choice, "LOW_PIXELS", ladder[-1].pixels)
    assert ours.image(shown, "d", detail=Detail("low")).num_tokens == ladder[-1].num_tokens
    monkeypatch.setattr(choice, "LOW_PIXELS", 0)
    assert ours.image(shown, "d", detail=Detail("low")).num_tokens == ladder[-1].num_tokens
    monkeypatch.setattr(choice, "LOW_PIXELS", 10**9)
    assert ours.image(shown, "d", detail=Detail("low")).digest == "d"


LADDER = [Step(9, 900, "nine"), Step(6, 600), Step(4, 300, "four"), Step(1, 100, "one")]


@pytest.mark.parametrize(
    ("level", "budget", "name"),
    [
        ("high", None, "nine"),
        ("high", 8, ""),
        ("auto", None, ""),
        ("auto", 9, ""),
        ("auto", 5, "four"),
        ("auto", 1, "one"),
        ("low", None, "four"),
        ("low", 9, "four"),
        ("low", 2, "one"),
    ],
)
def test_what_is_asked_chooses_the_finest_step_within_it(
    level: Any, budget: int | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "LOW_PIXELS", 599)
    assert choose(LADDER, Detail(level, budget)).name == name
    with pytest.raises(RequestError, match="at least 1 tokens"):
        choose(LADDER, Detail(level, 0))


def test_every_detail_has_a_name_of_its_own() -> None:
    asked = [Detail(level, most) for level in ("low", "auto", "high") for most in (None, 1, 64)]
    names = [each.name for each in asked]
    assert len(set(names)) == len(asked)
    assert Detail().name == ""


def test_settings_that_are_not_understood_change_nothing_and_refuse_what_is_over(
    build: Any, caplog: pytest.LogCaptureFixture
) -> None:
    hf_processor, ours = build("pixtral")
    shown, edge = picture(190, 130), hf_processor.image_processor.size.longest_edge
    own = ours.image(shown, "d")
    hf_processor.image_processor.size = {"height": edge, "width": edge}
    for detail in (Detail("high"), Detail("low"), Detail("auto", own.num_tokens)):
        image = ours.image(shown, "d", detail=detail)
        assert (image.digest, image.num_tokens) == ("d", own.num_tokens)
    assert "detail changes nothing" in caplog.text
    with pytest.raises(RequestError, match=f"at least {own.num_tokens} tokens"):
        ours.image(shown, "d", detail=Detail("auto", own.num_tokens - 1))


def test_the_bundled_model_takes_what_it_always_takes_or_refuses() -> None:
    processor = Processor.load("llava-demo")
    assert processor.fewest_image_tokens == 64
    shown = picture(640, 480)
    for detail in (Detail("low"), Detail("high"), Detail("auto", 64), Detail("low", 1000)):
        assert processor.image(shown, "d", detail=detail).digest == "d"
    with pytest.raises(RequestError, match="at least 64 tokens"):
        processor.image(shown, "d", detail=Detail("low", 63))


@pytest.mark.parametrize("size", [(1, 1), (9, 400), (1600, 33), (8192, 8192), (2687, 900)], ids=str)
@pytest.mark.parametrize("checkpoint", PUBLISHED)
def test_ladders_of_published_checkpoints_go_down_for_pictures_of_any_shape(
    checkpoint: str, size: tuple[int, int]
) -> None:
    ladder, shown = asked(checkpoint, size)
    steps = list(ladder.steps(shown))
    counts = [step.num_tokens for step in steps]
    assert counts == sorted(set(counts), reverse=True)
    assert counts[-1] >= ladder.fewest(shown) >= 1
    assert [step.name for step in steps].count("") == 1
    assert len({step.name for step in steps}) == len(steps)
