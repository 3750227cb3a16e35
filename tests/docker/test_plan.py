"""`lookm plan` says what the engine would decide, from a config alone."""

import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

from lookm import memory
from lookm.attention import REFERENCE
from lookm.config import EngineConfig
from lookm.demo import checkpoint_path
from lookm.memory import make_plan
from lookm.models.adapter import Adapter
from lookm.models.attention_interface import LayerRows
from lookm.models.families import family_of
from lookm.models.inputs import PackedRows
from lookm.models.loading import load_model
from server.cli import app
from server.openai.request import policies
from server.plan import FRACTIONS, Conversation, fits, pool_bytes, read_shape
from server.settings import Settings
from server.version import version
from server.what_fits import (
    advised,
    kept,
    of_kv_bits,
    plan,
    rows,
    serve_line,
    table,
    weight_bytes_of,
)
from tests.docker.files import DOCKER
from tests.lookm.models.toys import TOYS

# Families whose configs, as they come, have the shape of a real model.
REAL = ("LlavaConfig", "LlavaNextConfig", "Qwen2_5_VLConfig", "Qwen3VLConfig", "Gemma3Config",
        "PaliGemmaConfig", "Idefics3Config", "InternVLConfig", "Mistral3Config")  # fmt: skip


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("stored", ["auto", "int8"])
def test_the_config_tells_what_the_loaded_model_caches(
    name: str, stored: Any, tmp_path: Path
) -> None:
    toy = TOYS[name]
    toy.config().save_pretrained(tmp_path)
    shape = replace(read_shape(str(tmp_path), "float32"), kv_cache_dtype=stored)
    engine_plan = make_plan(
        EngineConfig(kv_cache_bytes=2**22, kv_cache_dtype=stored),
        Adapter(toy.model(), toy.row),
        REFERENCE,
        model_path="",
    )
    assert shape.page_bytes == engine_plan.page_bytes
    assert shape.kv_bytes_per_token == engine_plan.kv_bytes_per_token
    assert shape.max_context_tokens == engine_plan.max_context_tokens
    assert shape.cache.windows_L == Adapter(toy.model(), toy.row).dimensions.windows_L


@pytest.mark.parametrize("name", REAL)
def test_weights_are_estimated_within_six_per_cent(name: str, tmp_path: Path) -> None:
    config = getattr(transformers, name)()
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    config.save_pretrained(tmp_path)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert read_shape(str(tmp_path)).num_parameters == pytest.approx(counted, rel=0.06)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive; on the meta device nothing is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self._live:
                self._live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, storage._cdata)
        self.peak = max(self.peak, sum(self._live.values()))
        return out


class NoAttention:
    """Stands in for a kernel: its result, without what it needs in between."""

    def attend(self, rows: LayerRows) -> torch.Tensor:
        return torch.empty_like(rows.q_HTD.transpose(0, 1))


@pytest.mark.parametrize(
    "name", ["LlavaConfig", "Qwen2_5_VLConfig", "Gemma3Config", "PaliGemmaConfig", "Mistral3Config"]
)
def test_a_prefill_takes_what_is_estimated(name: str, tmp_path: Path) -> None:
    config = getattr(transformers, name)(dtype=torch.float16)
    config.save_pretrained(tmp_path)
    config.get_text_config().num_hidden_layers = 2  # layers run one after the other
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    adapter = Adapter(model.eval(), family_of(config))
    pos_RT = torch.arange(4096, device="meta").expand(adapter.position_rows, -1)
    with torch.inference_mode(), LiveBytes() as live:
        rows = PackedRows(adapter.embed_tokens([0] * 4096), pos_RT)
        adapter.forward(rows, NoAttention())
    estimate = read_shape(str(tmp_path)).prefill_bytes(4096)
    assert estimate == pytest.approx(live.peak, rel=0.02)


def llava_7b(folder: Path) -> None:
    """The config of llava-hf/llava-1.5-7b-hf, as far as sizes go."""
    config = transformers.LlavaConfig(dtype="float16")
    config.text_config.max_position_embeddings = 4096
    config.text_config.vocab_size = 32064
    config.save_pretrained(folder)


def test_llava_7b_is_the_known_arithmetic(tmp_path: Path) -> None:
    llava_7b(tmp_path)
    shape = read_shape(str(tmp_path))
    assert shape.kv_bytes_per_token == 32 * 32 * 128 * 2 * 2
    pool = pool_bytes(shape, 24 * 2**30, shape.weight_bytes)
    prefill = 4096 * (3 * 11008 + 4 * 4096 + 2 * 128) * 2
    free, image_cache = 24 * 2**30 - shape.weight_bytes, 2**28
    moving = 4 * 4096 * 32 * 128 * 2 * 2  # four layers' rows, to and from the prompt store
    assert pool == int(0.94 * free - image_cache - prefill - moving)
    rows = fits(shape, pool, Conversation(2048, 256))
    for keep, row in zip(FRACTIONS, rows, strict=True):
        tokens = -(-(int(2048 * keep) + 256) // 16) * 16
        assert row.bytes_each == tokens * shape.kv_bytes_per_token
        assert row.num_conversations == pool // shape.page_bytes // (tokens // 16 * 32)


def test_several_servers_are_so_many_times_one_and_their_stores(tmp_path: Path) -> None:
    llava_7b(tmp_path)
    config = EngineConfig(model=str(tmp_path))
    one = list(plan(config, "80GiB", tokens=(2048, 256)))
    eight = list(plan(config, "80GiB", tokens=(2048, 256), replicas=8))
    assert eight[: len(one)] == one
    shape = read_shape(str(tmp_path))
    pool = pool_bytes(shape, 80 * 2**30, shape.weight_bytes)
    rows = fits(shape, pool, Conversation(2048, 256), (1.0, 0.5, 0.2))
    for line, row in zip(eight[-len(rows) :], rows, strict=True):
        assert int(line.split()[1].replace(",", "")) == 8 * min(64, row.num_conversations)
    full = eight[-len(rows)].split()
    assert full[2:4] == [f"{rows[0].num_conversations:.3g}", "GiB"], "2,048 tokens are one GiB"


@pytest.mark.parametrize("stored", ["auto", "int8"])
@pytest.mark.parametrize("gpu_gib", [16, 24, 80, 192])
@pytest.mark.parametrize("context", [None, 2048])
def test_the_engine_decides_the_same_where_it_measures_what_is_estimated(
    gpu_gib: int, context: int | None, stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the pool that is enough for everyone, which 192 GiB exceed."""
    llava_7b(tmp_path)
    shape = replace(read_shape(str(tmp_path)), kv_cache_dtype=stored)
    gpu_bytes = gpu_gib * 2**30
    asked = EngineConfig(max_context_tokens=context, kv_cache_dtype=stored)
    dimensions = SimpleNamespace(
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        max_context_tokens=4096,
        windows_L=(None,) * 32,
    )
    gpu = torch.device("cuda")
    adapter: Any = SimpleNamespace(device=gpu, dtype=torch.float16, dimensions=dimensions)
    free = (gpu_bytes - shape.weight_bytes, gpu_bytes)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: free)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(memory, "prefill_bytes", lambda a, b, tokens: shape.prefill_bytes(tokens))
    decided = make_plan(asked, adapter, REFERENCE, model_path="")
    pool = pool_bytes(shape, gpu_bytes, shape.weight_bytes, asked)
    assert decided.num_pages == pool // shape.page_bytes
    enough = 64 * (context or 4096) // 16 * 32
    plenty = gpu_gib == 192 or (gpu_gib, context, stored) == (80, 2048, "int8")
    assert (decided.num_pages == enough) == plenty


def test_the_operating_page_shows_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (DOCKER / "README.md").read_text()
    shown = page[page.index("$ lookm plan") :]
    command, _, printed = shown[: shown.index("```")].partition("\n")
    flags = command.split()[2:]
    llava_7b(tmp_path / flags[flags.index("--model") + 1])
    assert CliRunner().invoke(app, flags).output == printed


def test_the_command_prints_a_row_for_each_size_of_a_weight_and_of_a_key() -> None:
    run = CliRunner().invoke(app, ["plan", "--gpu-memory", "1GiB"])
    assert run.exit_code == 0
    assert "KV cache    6 KiB a token" in run.output
    lines = [line.split() for line in run.output.splitlines() if " bits " in line]
    assert [(line[0], line[4]) for line in lines] == [
        (weights, kv) for weights in ("16", "8", "4") for kv in ("16", "8")
    ]


WHOLE = Conversation(1536, 256)


def test_fewer_bits_and_fewer_rows_hold_more_and_no_more_than_may_run_is_promised(
    tmp_path: Path,
) -> None:
    llava_7b(tmp_path)
    shape, config = read_shape(str(tmp_path)), EngineConfig(max_running=40)
    found = rows(shape, 24 * 2**30, shape.weight_bytes, WHOLE, config)
    counts = {
        (row.weight_bits, row.kv_bits): [fit.num_conversations for fit in row.fits] for row in found
    }
    assert counts[16, 16] == [10, 18, 33]  # the engine's own arithmetic, above
    for (weights, kv), held in counts.items():
        assert held == sorted(held)
        if kv == 8:
            assert 1.8 < held[0] / counts[weights, 16][0] < 2.01
    assert [counts[bits, 16][0] for bits in (16, 8, 4)] == sorted(
        counts[bits, 16][0] for bits in (16, 8, 4)
    )
    shown = "\n".join(table(found, config.max_running))
    assert "40 (64)" in shown
    assert "  64  " not in shown


def test_bytes_a_number_are_halves_and_scales(tmp_path: Path) -> None:
    llava_7b(tmp_path)
    shape = read_shape(str(tmp_path))
    page = of_kv_bits(shape, 8).page_bytes
    assert page == 2 * 32 * 16 * (128 + 4)
    assert of_kv_bits(shape, 16).page_bytes == 2 * 32 * 16 * 128 * 2


def test_linear_weights_are_those_of_the_decoder_layers(tmp_path: Path) -> None:
    config = transformers.LlavaConfig()
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config)
    config.save_pretrained(tmp_path)
    layers = model.model.language_model.layers.modules()
    counted = sum(each.weight.numel() for each in layers if isinstance(each, torch.nn.Linear))
    assert read_shape(str(tmp_path)).num_linear_parameters == counted


@pytest.mark.parametrize(
    ("gpu_gib", "max_running", "policy", "kv_bits"),
    [(80, 64, "full", 16), (24, 10, "full", 16), (24, 15, "full", 8),
     (24, 30, "full", 8), (24, 40, "look-m-plus@0.5-1", 8), (12, 20, "look-m-plus@0.2-1", 8),
     (24, 500, "look-m-plus@0.2-1", 8)],
)  # fmt: skip
def test_the_line_to_run_keeps_as_much_as_lets_as_many_run(
    gpu_gib: int, max_running: int, policy: str, kv_bits: int, tmp_path: Path
) -> None:
    llava_7b(tmp_path)
    shape = read_shape(str(tmp_path))
    config = EngineConfig(model="m", max_running=max_running, max_context_tokens=4096)
    found = rows(shape, gpu_gib * 2**30, shape.weight_bytes, WHOLE, config)
    best = advised(found, max_running)
    assert best is not None
    line = serve_line(*best, config)
    flags = line.split()
    assert flags[flags.index("--kv-cache") + 1] == policy
    assert ("--kv-cache-dtype int8" in line) == (kv_bits == 8)
    policies.read(policy)
    names = {flag.removeprefix("--").replace("-", "_") for flag in flags if flag[:2] == "--"}
    assert names - {"kv_cache_dtype"} <= set(Settings.model_fields)
    assert ("--quantization int8" in line) == (best[0].weight_bits == 8)


def test_weights_that_do_not_fit_at_16_bits_are_made_int8_or_not_advised(tmp_path: Path) -> None:
    llava_7b(tmp_path)
    shown = list(plan(EngineConfig(model=str(tmp_path)), "12GiB"))
    assert any(line.startswith("16 bits") and line.endswith("do not fit") for line in shown)
    assert "--quantization int8" in shown[-1]
    shown = list(plan(EngineConfig(model=str(tmp_path)), "6GiB"))
    assert shown[-1].startswith("Weights of 8 bits do not fit")


def test_who_does_not_fit_is_not_advised_and_a_dtype_that_is_asked_for_is_named() -> None:
    shown = list(plan(EngineConfig(model="llava-demo"), "299MiB", tokens=(2000, 48)))
    assert shown[-1].startswith("Not one of them fits")
    shown = list(plan(EngineConfig(model="llava-demo", dtype="float32"), "24GiB"))
    assert "--dtype float32" in shown[-1]
    whole = next(line.split() for line in shown if " bits " in line)
    assert (whole[0], whole[4]) == ("32", "32")


@pytest.mark.parametrize("size", ["0", "1", "3.5MiB"])
def test_weights_that_come_quantised_are_taken_as_they_are(size: str) -> None:
    shown = list(plan(EngineConfig(model="llava-demo"), "24GiB", weights=size))
    table = [line.split()[:3] for line in shown[shown.index("") + 4 : -3]]
    assert table[0] == ["weights", "KV", "page"]
    assert [row[0] for row in table[1:]] == ["given", "given"], "keys of 16 bits and of 8"
    assert not any(row[1].startswith("-") for row in table[1:])
    assert "--quantization" not in shown[-1]


def test_int8_weights_are_estimated_as_they_are_made(tmp_path: Path) -> None:
    model = str(checkpoint_path())
    loaded, _ = load_model(model, dtype=torch.bfloat16, device=torch.device("cpu"), quantize="int8")
    tensors = {id(t): t for t in (*loaded.parameters(), *loaded.buffers())}
    counted = sum(tensor.nbytes for tensor in tensors.values())
    shape = read_shape(model)
    assert weight_bytes_of(shape, 8, shape.weight_bytes) == pytest.approx(counted, rel=0.06)


def test_layers_with_a_window_are_counted_and_a_model_of_them_alone_runs_at_full(
    tmp_path: Path,
) -> None:
    transformers.Gemma3Config().save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path))
    assert any("layers see" in line for line in plan(EngineConfig(model=str(tmp_path)), "80GiB"))
    assert kept(shape) == (1.0, 0.5, 0.2)
    assert kept(replace(shape, windows_L=(512,) * shape.num_layers)) == (1.0,)
    windows = tuple(512 if window else None for window in shape.cache.windows_L)
    (full, half, _), (all_full, all_half, _) = (
        fits(each, 2**34, Conversation(4096, 256), (1.0, 0.5, 0.2))
        for each in (replace(shape, windows_L=windows), replace(shape, windows_L=()))
    )
    assert full.bytes_each == all_full.bytes_each
    assert half.bytes_each < all_half.bytes_each  # windows keep no more than they see


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--model", "nonsense"), "no model directory"),
        (("--gpu-memory", "5MiB"), "take a bigger GPU"),
        (("--gpu-memory", "much"), "give a size"),
        (("--prompt-tokens", "9000"), "smaller --prompt-tokens"),
        (("--dtype", "int3"), "choose auto"),
        (("--max-context-tokens", "1000"), "smaller --prompt-tokens"),
        (("--max-context-tokens", "9000"), "smaller --prompt-tokens"),
        (("--gpu-memory", "290MiB"), "smaller --max-context-tokens"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(flags: tuple[str, ...], told: str) -> None:
    run = CliRunner().invoke(app, ["plan", *flags])
    assert run.exit_code == 2
    assert told in run.output
    assert run.output.count("\n") == 1


def test_given_weights_replace_the_estimate() -> None:
    assert any("weights     1 GiB" in line for line in plan(EngineConfig(), "2GiB", "1GiB"))


@pytest.mark.parametrize("asked", ["--version", "version"])
def test_the_version_is_printed_either_way(asked: str) -> None:
    run = CliRunner().invoke(app, [asked])
    assert (run.exit_code, run.output) == (0, f"{version()}\n")
