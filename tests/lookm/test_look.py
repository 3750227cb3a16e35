"""Golden vectors of the authors' code, the library call's contract, and `look` against it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import lookm
from lookm import CachePolicy, PolicyError, RequestError, compress
from lookm.attention import REFERENCE
from lookm.look import PromptLook
from lookm.policy import PRESETS, PromptPolicy, resolve
from lookm.types import Needs
from tests.lookm.policy.layers import layer

GOLDEN = Path(__file__).parent.parent / "data"
METHOD = {"H2OKVCache_LayerWise": "h2o", "TextPivotMerge_LayerWise": "look-m"}
NAMES = ["h2o_1image", "lookm_pivot_1image", "lookm_pivot_text_overflow"]


def golden(name: Any) -> Any:
    """Tensors, and the policy that they were made with."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        made = file.metadata()
    important, recent = int(made["important_tokens"]), int(made["recent_tokens"])
    total = important + recent
    policy = CachePolicy(METHOD[made["method"]], keep_tokens=total, recent=recent / total)
    return tensors, policy


def call(tensors: Any, policy: Any, dtype: Any) -> Any:
    rows = (tensors[name].to(dtype) for name in ("query", "key", "value"))
    return compress(*rows, tensors["is_image"], policy)


def opened(policy: Any, is_image_T: Any) -> Any:
    """A look at a prompt of one layer."""
    policy = PromptPolicy(resolve(policy), is_image_T, 1)
    return PromptLook(policy, is_image_T, num_layers=1, backend=REFERENCE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_authors_released_code_is_reproduced(name: Any, dtype: Any) -> None:
    tensors, policy = golden(name)
    got = call(tensors, policy, dtype)
    assert torch.equal(got.positions, tensors["kept_positions"])
    assert got.key.dtype == got.value.dtype == dtype
    torch.testing.assert_close(got.key.float(), tensors["compressed_key"], rtol=0, atol=1e-5)
    torch.testing.assert_close(got.value.float(), tensors["compressed_value"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_keeps_the_same_positions_and_is_rounded_once(name: Any) -> None:
    tensors, policy = golden(name)
    got = call(tensors, policy, torch.float16)
    assert torch.equal(got.positions, tensors["kept_positions"])
    assert torch.equal(got.key, tensors["compressed_key"].half())
    assert torch.equal(got.value, tensors["compressed_value"].half())


@pytest.mark.parametrize(("name", "text"), [(NAMES[0], "h2o@0.2"), (NAMES[1], "look-m@0.2")])
def test_the_short_form_is_the_papers_twenty_percent(name: Any, text: Any) -> None:
    tensors, _ = golden(name)
    got = call(tensors, text, torch.float32)
    assert torch.equal(got.positions, tensors["kept_positions"])
    torch.testing.assert_close(got.key, tensors["compressed_key"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", sorted(set(PRESETS) - {"full"}))
def test_look_gives_the_attention_output_and_what_compress_gives(method: Any) -> None:
    rows, attention = layer(num_tokens=200, images=((20, 180),)), REFERENCE.attention
    policy = CachePolicy(method, keep=0.3)
    look = opened(policy, rows.is_image_T)
    one = look.layer(0, 16**-0.5)
    out_THD = one.attend(*rows[:3])
    got = one.compress(*rows[:3])
    expected = compress(*rows, policy)
    assert torch.equal(got.positions, expected.positions)
    torch.testing.assert_close(got.key, expected.key)
    torch.testing.assert_close(got.value, expected.value)
    whole_THD, _ = attention.prefill(*rows[:3], scale=16**-0.5, needs=Needs())
    torch.testing.assert_close(out_THD, whole_THD, rtol=1e-5, atol=1e-5)
    assert look.compress_s > 0
    assert (look.num_evicted, look.num_merged) == (expected.num_evicted, expected.num_merged)


@pytest.mark.parametrize("cuts", [(1,), (64, 150), (150, 195), (190, 199)])
@pytest.mark.parametrize("method", sorted(set(PRESETS) - {"full"}))
def test_a_prompt_seen_in_parts_is_kept_as_one_seen_at_once(method: Any, cuts: Any) -> None:
    q, k, v, is_image = layer(num_tokens=200, images=((20, 180),))
    policy, parts = CachePolicy(method, keep=0.3), [*pairwise((0, *cuts, 200))]
    look, attention = opened(policy, is_image), REFERENCE.attention
    one = look.layer(0, 16**-0.5)
    outs = [one.attend(q[:, start:end], k[:, :end], v[:, :end]) for start, end in parts]
    got, expected = one.compress(q, k, v), compress(q, k, v, is_image, policy)
    whole_THD, _ = attention.prefill(q, k, v, scale=16**-0.5, needs=Needs())
    torch.testing.assert_close(torch.cat(outs), whole_THD, rtol=1e-5, atol=1e-5)
    assert torch.equal(got.positions, expected.positions)
    torch.testing.assert_close(got.key, expected.key)
    torch.testing.assert_close(got.value, expected.value)


def test_the_sums_of_a_part_that_is_left_out_are_missed() -> None:
    """The control of the test above: without its first rows a prompt is kept differently."""
    q, k, v, is_image = layer(num_tokens=200, images=((20, 180),))
    one = opened("h2o@0.3", is_image).layer(0, 16**-0.5)
    one.attend(q[:, 150:], k, v)
    got = one.compress(q, k, v)
    assert not torch.equal(got.positions, compress(q, k, v, is_image, "h2o@0.3").positions)


def test_inputs_are_never_changed_and_never_shared_with_the_result() -> None:
    for policy in ("look-m@0.3", "full"):
        rows = layer()
        before = [tensor.clone() for tensor in rows]
        got = compress(*rows, policy)
        got.key.zero_()
        got.value.zero_()
        assert all(torch.equal(new, old) for new, old in zip(rows, before, strict=True))


def test_inputs_that_require_grad_or_are_strided_are_accepted() -> None:
    rows = layer()
    strided = [
        tensor.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for tensor in rows[:3]
    ]
    got, expected = compress(*strided, rows.is_image_T, "look-m@0.3"), compress(*rows, "look-m@0.3")
    assert torch.equal(got.key, expected.key)
    assert not got.key.requires_grad


def test_the_scale_changes_what_is_kept() -> None:
    rows = layer()
    default, same = compress(*rows, "h2o@0.3"), compress(*rows, "h2o@0.3", scale=16**-0.5)
    assert torch.equal(default.positions, same.positions)
    assert not torch.equal(default.positions, compress(*rows, "h2o@0.3", scale=16.0).positions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, i: (q[0], k, v, i), r"\[H, T, D\]"),
        (lambda q, k, v, i: (q[:, :0], k[:, :0], v[:, :0], i[:0]), "none empty"),
        (lambda q, k, v, i: (q, k, v[:1], i), "share"),
        (lambda q, k, v, i: (q[:, 1:], k, v, i), "share"),
        (lambda q, k, v, i: (q[..., 1:], k, v, i), "share"),
        (lambda q, k, v, i: (q[:3], k, v, i), "multiple"),
        (lambda q, k, v, i: (q, k, v, i[1:]), "is_image"),
        (lambda q, k, v, i: (q, k, v, i.int()), "is_image"),
        (lambda q, k, v, i: (q, k.half(), v, i), "float16"),
        (lambda q, k, v, i: (q.int(), k.int(), v.int(), i), "float16"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_their_shapes(change: Any, message: Any) -> None:
    with pytest.raises(RequestError, match=message):
        compress(*change(*layer()), "look-m@0.3")


def test_an_unknown_policy_is_refused_before_the_tensors_are_looked_at() -> None:
    with pytest.raises(PolicyError, match="unknown method"):
        lookm.compress(*[torch.zeros(1)] * 4, "nope@0.2")
