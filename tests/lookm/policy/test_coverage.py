"""The score of `look-m-plus`: who stands where in line, and how evenly images are kept."""

from typing import Any

import torch

from lookm.policy.coverage import covering, even_places
from lookm.policy.view import View


def view_of(is_image: Any, window: Any = None, num_heads: int = 1, layer: int = 0) -> Any:
    is_image_T = torch.tensor(is_image)
    rows = torch.zeros(num_heads, len(is_image), 4)
    return View(rows, rows, is_image_T, window_KT=window, layer=layer)


def test_text_takes_three_places_of_four_and_images_the_fourth_until_one_is_used_up() -> None:
    is_image = [True] * 4 + [False] * 4
    window = torch.tensor([[9.0, 9, 9, 9, 0.1, 0.4, 0.3, 0.2]])
    place = -covering(view_of(is_image, window))[0]
    # text by attention: 5, 6, 7, 4; images by the golden ratio: 0, .62, .24, .85
    torch.testing.assert_close(place[4:], torch.tensor([4.0, 0, 4 / 3, 8 / 3]))
    torch.testing.assert_close(place[:4], torch.tensor([0.0, 6, 4, 7]))
    # six kept: all four text tokens would be 67 %; the first two images fit beside them
    assert sorted(place.argsort(stable=True)[:6].tolist()) == [0, 2, 4, 5, 6, 7]


def test_text_never_takes_more_than_three_quarters_while_there_are_images() -> None:
    torch.manual_seed(0)
    is_image = [False] * 200 + [True] * 100
    score = covering(view_of(is_image, torch.rand(2, 300), num_heads=2))
    for kept in (4, 20, 100, 200):
        best = score.argsort(dim=1, descending=True, stable=True)[:, :kept]
        share = (best < 200).float().mean(dim=1)
        assert (share <= 0.75 + 1 / kept).all()
        assert (share >= 0.75 - 1 / kept).all()


def test_every_image_keeps_the_same_share_in_every_head_at_any_budget() -> None:
    is_image = ([False] * 3 + [True] * 64) * 8 + [False] * 10
    view = view_of(is_image, torch.zeros(4, 546), num_heads=4, layer=2)
    places = even_places(view).masked_fill(~view.is_image_T, 2)
    image_of = torch.tensor(is_image).cumsum(0) - 1
    for kept in (16, 40, 100, 256):
        best = places.argsort(dim=1)[:, :kept]
        for head in range(4):
            count = torch.bincount(image_of[best[head]] // 64, minlength=8)
            assert count.max() - count.min() <= 3
    first = places.argsort(dim=1)[:, :40].sort(dim=1).values
    gaps = first[0][image_of[first[0]] < 64].diff()
    assert gaps.max() <= 3 * gaps.min()


def test_heads_and_layers_keep_different_patches() -> None:
    best = [
        set(
            even_places(view_of([True] * 100, num_heads=2, layer=layer))[head]
            .argsort()[:20]
            .tolist()
        )
        for head in range(2)
        for layer in range(2)
    ]
    assert all(one != other for i, one in enumerate(best) for other in best[:i])


def test_a_prompt_of_one_kind_is_ranked_by_its_own_rule() -> None:
    window = torch.tensor([[0.2, 0.5, 0.3]])
    assert (-covering(view_of([False] * 3, window))).argsort().tolist() == [[1, 2, 0]]
    assert (-covering(view_of([True] * 3, window))).argsort().tolist() == [[0, 2, 1]]
