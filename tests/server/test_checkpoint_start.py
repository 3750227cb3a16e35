"""What a checkpoint's files say is known before a worker starts, and holds for its requests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lookm.errors import ModelError
from lookm.models.generation import GenerationDefaults
from server.app import load_processor, prepare
from server.launch import FAILED, launch
from server.settings import Settings
from server.worker.launch import WorkerProcess
from tests.lookm.models.hub_shape import POINTER, WEIGHTS, drop, edit, edit_weights, write
from tests.server.requests import CHAT, chat, says, serving

OWN = GenerationDefaults(temperature=0.3, top_p=0.9, top_k=7, min_p=0.05, repetition_penalty=1.05)
FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


async def sampled(**fields: Any) -> GenerationDefaults:
    """The sampling that the engine is asked for where the checkpoint has `OWN`."""
    async with serving(Settings(model="fake"), says, prepare=lambda: OWN) as (client, engine, _):
        body = {key: value for key, value in chat().items() if key not in FIELDS}
        assert (await client.post(CHAT, json=body | fields)).status_code == 200
        asked = engine.requests[0].sampling
    return GenerationDefaults(*(getattr(asked, name) for name in FIELDS))


@pytest.mark.anyio
async def test_where_a_request_does_not_say_the_checkpoint_does() -> None:
    assert await sampled() == OWN
    assert await sampled(temperature=None, top_p=None) == OWN


@pytest.mark.anyio
async def test_what_a_request_says_holds() -> None:
    said = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    assert await sampled(**said) == GenerationDefaults(**said)


def test_the_file_is_read_unless_it_is_turned_off(tmp_path: Path) -> None:
    write(tmp_path)
    edit(tmp_path / "generation_config.json", lambda file: file.update(temperature=0.3, top_k=5))
    model = str(tmp_path)
    assert prepare(Settings(model=model)) == GenerationDefaults(temperature=0.3, top_k=5)
    settings = Settings(model=model, generation_config="none")
    assert prepare(settings) == GenerationDefaults()
    assert prepare(Settings(model="fake")) == GenerationDefaults()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / WEIGHTS).write_text(POINTER), "git LFS pointer"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
        (
            lambda folder: edit(
                folder / "generation_config.json", lambda file: file.update(top_p=2)
            ),
            "--generation-config none",
        ),
    ],
)
def test_a_broken_checkpoint_ends_the_start_before_a_worker(
    tmp_path: Path,
    spoil: Callable[[Path], Any],
    said: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(write(tmp_path))
    capfd.readouterr()

    async def spawn(address: str) -> WorkerProcess:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(WorkerProcess, "spawn", spawn)
    assert launch(Settings(model=str(tmp_path), port=0, log_level="error")) == FAILED
    output = capfd.readouterr()
    (line,) = output.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert "ready" not in output.out


def test_weights_of_another_model_end_the_start_without_a_second_worker(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit_weights(write(tmp_path), lambda weights: drop(weights, "lm_head"))
    settings = Settings(model=str(tmp_path), port=0, device="cpu", kv_cache_memory="16MiB")
    capfd.readouterr()
    assert launch(settings) == FAILED
    output = capfd.readouterr().err
    assert "lacks 1 weight of LlavaForConditionalGeneration: lm_head.weight" in output
    assert "Traceback" not in output
    assert "next one in" not in output


def test_the_api_process_judges_weights_and_images_without_the_worker(tmp_path: Path) -> None:
    write(tmp_path)
    load_processor(str(tmp_path))
    edit_weights(tmp_path, lambda weights: drop(weights, "lm_head"))
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        load_processor(str(tmp_path))
