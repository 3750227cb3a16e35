"""Where the engine runs: what is asked for is there, or the error says why not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lookm import Engine, EngineConfig
from lookm.attention import choose, select
from lookm.device import choose_device, choose_dtype
from lookm.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with two GPUs of the H200's kind; notes which one was made current."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(select, "_missing_for_triton", list)
    return current


def test_auto_is_the_gpu_where_there_is_one(gpus: Any) -> None:
    assert choose_device("auto") == CUDA
    assert choose_device("cpu") == CPU


def test_a_numbered_gpu_becomes_the_current_one(gpus: Any) -> None:
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert gpus == [torch.device("cuda:1")]


def test_a_gpu_that_is_not_there_is_refused_with_how_many_there_are(gpus: Any) -> None:
    with pytest.raises(ConfigError, match="'cuda:2' does not exist: 2 found"):
        choose_device("cuda:2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a machine without a GPU")
@pytest.mark.parametrize("asked", ["cuda", "cuda:0"])
def test_without_a_gpu_the_engine_says_why_before_it_loads_anything(asked: Any) -> None:
    with pytest.raises(ConfigError, match=f"'{asked}' cannot be used: torch .* CUDA"):
        Engine.from_config(EngineConfig(device=asked, model="no-such-model"))


def test_a_driver_that_shows_no_gpu_is_told_apart_from_a_torch_without_cuda(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert choose_device("auto") == CPU
    assert "NVIDIA Container Toolkit" in caplog.text
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigError, match="built without CUDA"):
        choose_device("cuda")


@pytest.mark.parametrize("asked", ["gpu", "", "mps", "cuda:x", "cuda:-1", "cpu,cuda"])
def test_other_names_are_refused_with_those_there_are(asked: Any) -> None:
    with pytest.raises(ConfigError, match="use auto, cpu, cuda or cuda:N"):
        choose_device(asked)


@pytest.mark.parametrize(
    ("asked", "own", "device", "expected"),
    [
        ("auto", torch.bfloat16, CPU, torch.bfloat16),
        ("auto", "float16", CPU, torch.bfloat16),
        ("auto", "float16", CUDA, torch.float16),
        ("auto", None, CPU, torch.float32),
        ("float16", torch.float32, CPU, torch.float16),
    ],
)
def test_the_type_is_the_asked_or_the_checkpoints(
    asked: Any, own: Any, device: Any, expected: Any
) -> None:
    assert choose_dtype(asked, own, device) == expected


def test_triton_is_refused_on_a_gpu_older_than_its_kernels(
    gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    assert choose("auto", CUDA).name == "triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert choose("auto", CUDA).name == "reference"
    with pytest.raises(ConfigError, match="Tesla T4 is older than Ampere"):
        choose("triton", CUDA)


def test_triton_without_a_compiler_is_refused_with_what_to_install(
    gpus: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("triton")
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(select.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"a C compiler and Python\.h \(apt install gcc"):
        choose("triton", CUDA)
    (tmp_path / "Python.h").touch()
    compiler = tmp_path / "gcc"
    compiler.touch(mode=0o755)
    assert choose("triton", CUDA).name == "triton"
