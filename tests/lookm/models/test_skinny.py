"""The choice between the library's linear layers and ours: by the clock, and only equals."""

import pytest
import torch
from torch import nn

from lookm.models.skinny import Chooser, SkinnyLinear, quicken
from tests.lookm.tiny import answers, random_prompt, tiny_engine, tiny_llava


def kernel(x, weight, bias, tile):
    """The library's, but for the tile called "wrong"."""
    out = nn.functional.linear(x, weight, bias)
    return out + (tile == "wrong")


class Clock:
    """Seconds by what was called: the library's, or a tile's at a number of rows."""

    def __init__(self, seconds):
        self.seconds, self.calls = seconds, 0

    def __call__(self, call):
        self.calls += 1
        cells = dict(zip(call.__code__.co_freevars, call.__closure__, strict=True))
        tile = cells["tile"].cell_contents if "tile" in cells else None
        return self.seconds(tile, len(cells["x_RC"].cell_contents))


def chosen(seconds, tiles=("a", "b"), outputs=8):
    linear = nn.Linear(16, outputs)
    return Chooser(kernel, tiles, Clock(seconds)).twin_of(linear)


def test_the_fastest_tile_is_taken():
    twin = chosen(lambda tile, rows: {None: 1.0, "a": 0.8, "b": 0.5}[tile])
    assert isinstance(twin, SkinnyLinear)
    assert twin._choice.tile == "b"
    assert twin._choice.gain == 2
    assert twin._choice.most_rows == 32


@pytest.mark.parametrize("slow_rows", [1, 8, 16])
def test_a_tile_that_loses_at_any_batch_is_not_taken(slow_rows):
    assert chosen(lambda tile, rows: 1.0 if tile is None or rows == slow_rows else 0.5) is None


def test_a_tile_that_loses_at_many_rows_is_used_for_few():
    twin = chosen(lambda tile, rows: 0.5 if tile and rows <= 16 else 1.0)
    assert twin._choice.most_rows == 16


def test_a_gain_within_the_noise_changes_nothing():
    assert chosen(lambda tile, rows: 0.99 if tile else 1.0) is None


def test_a_tile_with_other_results_is_not_taken_however_fast():
    twin = chosen(lambda tile, rows: {None: 1.0, "wrong": 0.01, "a": 0.5}[tile], ("wrong", "a"))
    assert twin._choice.tile == "a"


def test_every_shape_is_timed_once():
    clock = Clock(lambda tile, rows: 1.0)
    chooser = Chooser(kernel, ("a",), clock)
    for _ in range(3):
        assert chooser.twin_of(nn.Linear(16, 8)) is None
    once = clock.calls
    chooser.twin_of(nn.Linear(16, 9))
    assert clock.calls == 2 * once


def test_only_plain_linear_layers_have_twins():
    chooser = Chooser(kernel, ("a",), Clock(lambda tile, rows: 0.5 if tile else 1.0))
    assert chooser.twin_of(nn.Embedding(4, 4)) is None
    assert chooser.twin_of(chooser.twin_of(nn.Linear(4, 4))) is None


def test_many_rows_go_to_the_library_and_shapes_are_kept():
    seen = []

    def noting(x, weight, bias, tile):
        seen.append(len(x))
        return kernel(x, weight, bias, tile)

    linear = nn.Linear(16, 8)
    twin = Chooser(noting, ("a",), Clock(lambda tile, rows: 0.5 if tile else 1.0)).twin_of(linear)
    seen.clear()
    with torch.inference_mode():
        for shape in ((16,), (1, 1, 16), (4, 8, 16), (33, 16), (0, 16)):
            x = torch.randn(shape)
            torch.testing.assert_close(twin(x), linear(x))
    assert seen == [1, 1, 32]


def test_an_engine_on_the_triton_kernel_gives_the_same_tokens():
    pytest.importorskip("triton")
    from lookm.attention.kernels.triton_linear import Tile, linear

    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = [random_prompt(1, seed=n).request(str(n), max_tokens=4) for n in range(2)]
    expected = answers(tiny_engine(tiny_llava().to(device)), asked)
    engine = tiny_engine(tiny_llava().to(device), graphs="on")
    model = engine._adapter._model
    clock = Clock(lambda tile, rows: 0.5 if tile else 1.0)
    quicken(engine._adapter._language_model, model, Chooser(linear, (Tile(32, 64, 2, 4),), clock))
    assert isinstance(model.lm_head, SkinnyLinear)
    assert not any(type(each) is nn.Linear for each in engine._adapter._language_model.modules())
    assert answers(engine, asked) == expected
