"""A checkpoint that is not whole, or not of one piece, is refused by name; one that is, loads."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lookm import Engine, EngineConfig
from lookm.errors import ModelError
from lookm.models.checkpoint import open_checkpoint, read_weights
from lookm.models.headers import Weight
from lookm.models.loading import find, judge_weights, load_config, load_model
from tests.lookm.models.hub_shape import POINTER, WEIGHTS, drop, edit, edit_weights, rename, write
from tests.lookm.models.toys import TOYS

CPU: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "model")


def refusal(work: Callable[[], object]) -> str:
    """The one line that says why."""
    with pytest.raises(ModelError) as caught:
        work()
    assert caught.value.param == "model"
    message = str(caught.value)
    assert "\n" not in message
    return message


def refusal_at_load(folder: Path) -> str:
    """The weights' own; and nothing of them was read for it."""
    find(str(folder))
    began = time.monotonic()
    message = refusal(lambda: load_model(str(folder), **CPU))
    assert time.monotonic() - began < 10
    return message


def test_a_missing_head_is_named(folder: Path) -> None:
    edit_weights(folder, lambda weights: drop(weights, "lm_head"))
    assert "lacks 1 weight of LlavaForConditionalGeneration: lm_head.weight" in refusal_at_load(
        folder
    )


def test_a_tied_head_need_not_be_there(tmp_path: Path) -> None:
    write(tmp_path, "gemma3")
    edit(tmp_path / "config.json", lambda config: config.update(tie_word_embeddings=True))
    edit(
        tmp_path / "config.json",
        lambda config: config["text_config"].update(tie_word_embeddings=True),
    )
    edit_weights(tmp_path, lambda weights: drop(weights, "lm_head"))
    load_model(str(tmp_path), **CPU)


def test_vision_weights_under_another_prefix_are_named_with_what_is_there_instead(
    folder: Path,
) -> None:
    edit_weights(folder, lambda weights: rename(weights, "vision_tower.", "visual_encoder."))
    message = refusal_at_load(folder)
    assert "model.vision_tower." in message
    assert "it holds visual_encoder." in message


@pytest.mark.parametrize(
    "prefixes",
    [
        (),
        (
            ("language_model.model.", "model.language_model."),
            ("language_model.lm_head.", "lm_head."),
            ("vision_tower.", "model.vision_tower."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
        ),
    ],
)
def test_both_generations_of_weight_names_load(folder: Path, prefixes: Any) -> None:
    for before, after in prefixes:
        edit_weights(folder, lambda weights, b=before, a=after: rename(weights, b, a))
    load_model(str(folder), **CPU)


def test_buffers_of_old_checkpoints_are_no_reason_to_refuse(folder: Path) -> None:
    edit_weights(
        folder,
        lambda weights: weights.update(
            {
                "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
                "vision_tower.vision_model.embeddings.position_ids": torch.arange(10)[None],
            }
        ),
    )
    load_model(str(folder), **CPU)


@pytest.mark.parametrize(
    "name",
    [
        "language_model.model.layers.7.mlp.up_proj.weight",
        "language_model.model.layers.0.self_attn.q_proj.bias",
        "language_model.model.layers.0.self_attn.q_norm.weight",
    ],
)
def test_a_weight_that_the_config_leaves_no_place_for_is_named(folder: Path, name: str) -> None:
    edit_weights(folder, lambda weights: weights.update({name: torch.ones(4)}))
    message = refusal_at_load(folder)
    assert "leaves no place for" in message
    assert name.partition("layers.")[2] in message


def test_a_part_beside_the_model_is_left_out_as_transformers_does(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"reward_head.weight": torch.ones(4)}))
    load_model(str(folder), **CPU)


def test_shapes_that_contradict_the_config_are_named_with_both(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config["text_config"].update(intermediate_size=80))
    message = refusal_at_load(folder)
    assert "of another shape than config.json says" in message
    assert "mlp" in message
    assert "80" in message


def test_a_config_that_describes_no_model_is_refused(folder: Path) -> None:
    edit(
        folder / "config.json",
        lambda config: config["text_config"].update(hidden_act="no-such-function"),
    )
    assert str(folder) in refusal_at_load(folder)


def cut(path: Path, num_bytes: int = 100) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


def to_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + data[8 + size :])


def in_one_place(header: dict[str, Any]) -> None:
    """Two layers' weights at the first one's bytes."""
    first, second = (f"language_model.model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    header[second] = header[first]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: f.write_text(POINTER), "git LFS pointer"),
        (cut, "cut or damaged"),
        (lambda f: cut(f, f.stat().st_size), "cut or damaged"),
        (lambda f: cut(f, f.stat().st_size - 20), "cut or damaged"),
        (lambda f: f.write_bytes(f.read_bytes() + b"\0" * 9), "cut or damaged"),
        (lambda f: f.write_bytes(b"<!DOCTYPE html>" * 99), "cut or damaged"),
        (
            lambda f: to_header(f, lambda h: list(h.values())[-1].update(data_offsets=[9, 1])),
            "cut or damaged",
        ),
        (lambda f: to_header(f, lambda h: h.update(x=3)), "cut or damaged"),
        (lambda f: to_header(f, in_one_place), "overlap"),
        (
            lambda f: to_header(
                f, lambda h: h.update(x={"dtype": "F8_E4M3", "shape": [0], "data_offsets": [0, 0]})
            ),
            "quantised",
        ),
    ],
)
def test_a_file_of_weights_that_is_not_whole_is_named(folder: Path, spoil: Any, said: str) -> None:
    spoil(folder / WEIGHTS)
    message = refusal(lambda: find(str(folder)))
    assert str(folder / WEIGHTS) in message
    assert said in message


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "processor_config.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("spoil", [cut, lambda path: path.write_text(POINTER)])
def test_a_small_file_that_is_not_whole_is_named(folder: Path, name: str, spoil: Any) -> None:
    spoil(folder / name)
    assert str(folder / name) in refusal(lambda: find(str(folder)))


def sharded(folder: Path) -> list[Path]:
    write(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    return shards


def test_shards_load(tmp_path: Path) -> None:
    sharded(tmp_path)
    load_model(str(tmp_path), **CPU)
    assert open_checkpoint(tmp_path).num_parameters


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards = sharded(tmp_path)
    shards[1].unlink()
    message = refusal(lambda: find(str(tmp_path)))
    assert f"lacks 1 of the {len(shards)} files" in message
    assert shards[1].name in message


def test_a_shard_of_another_version_is_named(tmp_path: Path) -> None:
    shards = sharded(tmp_path)
    shards[1].write_bytes(shards[0].read_bytes())
    message = refusal(lambda: find(str(tmp_path)))
    assert str(shards[1]) in message
    assert "does not hold" in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
        ("processor_config.json", "no image processor"),
        ("config.json", "no config.json"),
    ],
)
def test_a_file_that_is_not_there_is_named(folder: Path, name: str, said: str) -> None:
    (folder / name).unlink()
    assert said in refusal(lambda: find(str(folder)))


def test_pickled_weights_load_and_are_held_to_the_same(folder: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    load_model(str(folder), **CPU)
    drop(weights, "lm_head")
    torch.save(weights, folder / "pytorch_model.bin")
    assert "lm_head.weight" in refusal_at_load(folder)
    cut(folder / "pytorch_model.bin")
    assert "pytorch_model.bin is cut" in refusal(lambda: find(str(folder)))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {
                "model_type": "llava",
                "architectures": ["LlavaLlamaForCausalLM"],
                "mm_vision_tower": "openai/clip-vit-large-patch14-336",
                "mm_hidden_size": 1024,
                "hidden_size": 4096,
            },
            "llava-hf/llava-1.5-7b-hf",
        ),
        (
            {
                "model_type": "llava_llama",
                "architectures": ["LlavaLlamaForCausalLM"],
                "mm_vision_tower": "clip",
                "image_aspect_ratio": "anyres",
                "hidden_size": 5120,
            },
            "llava-hf/llava-v1.6-vicuna-13b-hf",
        ),
        (
            {
                "model_type": "llava_qwen",
                "architectures": ["LlavaQwenForCausalLM"],
                "mm_vision_tower": "siglip",
                "hidden_size": 3584,
            },
            "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        ),
        (
            {
                "model_type": "mobilevlm",
                "architectures": ["MobileLlamaForCausalLM"],
                "mm_vision_tower": "clip",
            },
            "MobileVLM, for which transformers has no class",
        ),
        ({"model_type": "internvl_chat", "auto_map": {}}, "ends in -hf"),
        ({"model_type": "phi3_v", "auto_map": {"AutoConfig": "x"}}, "needs code of its own"),
        ({"model_type": "llama"}, "'llama' is not supported; supported: gemma3, .*smolvlm"),
        ({}, "without a model_type"),
        ({"model_type": "llava", "quantization_config": {"quant_method": "awq"}}, r"\(awq\)"),
        (
            {"model_type": "llava", "quantization_config": {"load_in_4bit": True}},
            r"\(bitsandbytes\)",
        ),
        (
            {"model_type": "llava", "text_config": {"quantization_config": {"bits": 4}}},
            "is quantised",
        ),
    ],
)
def test_a_kind_that_cannot_be_served_is_refused_with_what_to_take(
    tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        find(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("params.json", "Mistral's own format"),
        ("adapter_config.json", "adapter"),
        ("model-Q4.gguf", "GGUF"),
        ("model_index.json", "diffusers"),
    ],
)
def test_a_folder_that_is_something_else_is_called_by_its_name(
    tmp_path: Path, file: str, said: str
) -> None:
    (tmp_path / file).write_text("{}")
    assert said in refusal(lambda: find(str(tmp_path)))


def test_tekken_alone_is_refused_by_name(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tekken.json")
    assert "tekken.json" in refusal(lambda: find(str(folder)))


def test_the_type_of_the_text_model_counts_where_the_top_names_none(folder: Path) -> None:
    def nested(config: dict[str, Any]) -> None:
        config.pop("dtype", None)
        config["text_config"]["dtype"] = "bfloat16"

    edit(folder / "config.json", nested)
    assert open_checkpoint(folder).dtype == "bfloat16"


def test_the_type_of_the_weights_counts_where_the_config_names_none(folder: Path) -> None:
    def nowhere(config: dict[str, Any]) -> None:
        for part in (config, config["text_config"], config["vision_config"]):
            part.pop("dtype", None)

    edit(folder / "config.json", nowhere)
    edit_weights(folder, lambda w: w.update({name: t.half() for name, t in w.items()}))
    assert open_checkpoint(folder).dtype == "float16"


@pytest.mark.parametrize("needs_it", [False, True])
def test_a_torchvision_that_does_not_load_hinders_only_who_needs_it(
    tmp_path: Path, needs_it: bool
) -> None:
    broken = tmp_path / "site" / "torchvision"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    model = "llava-demo"
    if needs_it:
        model = str(tmp_path / "model")
        TOYS["qwen2_vl"].config().save_pretrained(model)
    code = "import sys; from lookm import Engine, EngineConfig as C; "
    code += "Engine.from_config(C(model=sys.argv[1], device='cpu', kv_cache_bytes=2**22))"
    path = os.pathsep.join([str(broken.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, model],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    if needs_it:
        last = done.stderr.strip().splitlines()[-1]
        assert "Qwen2-VL needs torchvision, which does not load here: pip install" in last
    else:
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("config.json", {"dtype": "float8"}, "dtype"),
        ("config.json", {"dtype": 7}, "dtype"),
        ("config.json", {"model_type": ["llava"]}, "config.json"),
        ("config.json", {"image_token_id": 5, "image_token_index": 5}, "image_token_id 5"),
        ("config.json", {"text_config": 5}, "text_config"),
        ("config.json", {"projector_hidden_act": "none"}, "does not describe a model"),
        ("generation_config.json", {"eos_token_id": "</s>"}, "eos_token_id"),
        ("processor_config.json", {"processor_class": "Nope"}, "processor_class"),
    ],
)
def test_values_that_make_no_sense_are_refused_in_one_line(
    folder: Path, file: str, changes: dict[str, Any], said: str
) -> None:
    edit(folder / file, lambda value: value.update(changes))
    config = EngineConfig(model=str(folder), device="cpu", kv_cache_bytes=2**22)
    assert said in refusal(lambda: Engine.from_config(config))


@pytest.mark.parametrize("name", TOYS)
def test_every_family_loads_under_the_hubs_names_and_under_transformers_own(
    tmp_path: Path, name: str
) -> None:
    model = TOYS[name].model()
    model.save_pretrained(tmp_path, max_shard_size="100KB")  # the hub's
    weights = read_weights(tmp_path, "toy")
    assert weights is not None
    config, path = load_config(str(tmp_path)), str(tmp_path)
    judge_weights(config, weights, path)
    tied = set(model.all_tied_weights_keys)
    own = {
        each: Weight("F32", tuple(tensor.shape))
        for each, tensor in model.state_dict().items()
        if each not in tied
    }
    judge_weights(config, own, path)
    for part in ("vis", "layers.0."):
        lost = next(each for each in weights if part in each)
        left = {each: weight for each, weight in weights.items() if each != lost}
        assert lost.rpartition(".")[2] in refusal(
            lambda left=left: judge_weights(config, left, path)
        )
