"""Fused modules in Triton's interpreter: the same numbers, and only where they are the same."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from lookm.attention.kernels.triton_rows import rms_norm, rotate, silu_mul
from lookm.attention.select import triton_model_kernels
from lookm.models.adapter import Adapter
from lookm.models.fast import fuse
from lookm.models.fast.equivalence import Seen
from lookm.models.inputs import PackedRows
from tests.lookm.models.toys import TOYS
from tests.lookm.tiny import answers, random_prompt, tiny_engine, tiny_llava

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def noise(*shape: Any, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_a_norm_is_the_mean_square_one(size: Any) -> None:
    x, weight = noise(2, 3, size), noise(size, seed=1)
    expected = weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 96, 1100])
def test_the_activation_gates_the_second_half(size: Any) -> None:
    x = noise(3, 2 * size)
    expected = torch.nn.functional.silu(x[:, :size]) * x[:, size:]
    torch.testing.assert_close(silu_mul(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("heads", "size"), [(3, 16), (5, 80)])
def test_rotation_turns_the_first_heads_and_leaves_the_rest(heads: Any, size: Any) -> None:
    x = noise(4, (heads + 2) * size)
    angle = noise(4, size // 2, seed=1).repeat(1, 2)
    before = x.view(4, -1, size).clone()
    half = torch.cat([-before[..., size // 2 :], before[..., : size // 2]], dim=-1)
    expected = before * angle.cos()[:, None] + half * angle.sin()[:, None]
    expected[:, heads:] = before[:, heads:]
    rotate(x, angle.cos(), angle.sin(), heads)
    torch.testing.assert_close(x.view_as(expected), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_an_engine_on_a_fused_model_gives_the_same_tokens(kv_heads: Any) -> None:
    asked = [random_prompt(1, seed=n).request(str(n), max_tokens=4) for n in range(2)]
    plain = tiny_llava(kv_heads=kv_heads)
    expected = answers(tiny_engine(plain), asked)
    engine = tiny_engine(tiny_llava(kv_heads=kv_heads), graphs="on")
    fuse.fuse(engine._adapter._language_model, triton_model_kernels())
    names = {type(module).__name__ for module in engine._adapter._language_model.modules()}
    assert {"FusedNorm", "FusedMLP", "FusedAttention"} <= names
    assert not names & {"LlamaAttention", "LlamaMLP", "LlamaRMSNorm"}
    assert answers(engine, asked) == expected


@pytest.mark.parametrize("name", sorted(TOYS))
def test_every_family_computes_the_same_with_whatever_is_fused_of_it(name: Any) -> None:
    toy = TOYS[name]
    plain, changed = (Adapter(toy.model().to(DEVICE), toy.row) for _ in range(2))
    fuse.fuse(changed._language_model, triton_model_kernels())
    found = []
    for each in (plain, changed):
        seen = Seen()
        rows = each.embed_tokens([5, 6, 7])
        pos_RT = torch.arange(3, device=DEVICE).expand(each.position_rows, -1)
        found.append(each.logits(each.forward(PackedRows(rows, pos_RT), seen)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


def test_a_module_that_computes_something_else_is_left_alone() -> None:
    class DoubledRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(8, device=DEVICE)), 1e-6

        def forward(self, x: Any) -> Any:
            return 2 * rms_norm(x, self.weight, self.eps)

    class GeluMLP(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("gate_proj", "up_proj", "down_proj"):
                setattr(self, name, torch.nn.Linear(8, 8, device=DEVICE))

        def forward(self, x: Any) -> Any:
            return self.down_proj(torch.nn.functional.gelu(self.gate_proj(x)) * self.up_proj(x))

    holder = torch.nn.ModuleList([DoubledRMSNorm(), GeluMLP()])
    fuse.fuse(holder, triton_model_kernels())
    assert [type(module).__name__ for module in holder] == ["DoubledRMSNorm", "GeluMLP"]
