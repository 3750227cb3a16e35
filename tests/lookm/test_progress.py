"""What a step is at, and what its pieces may take."""

import math

import pytest
import torch

from lookm.progress import Piece, Progress
from tests.lookm.tiny import random_prompt, tiny_engine


def test_a_piece_is_expected_to_take_what_the_longest_did_and_more_where_it_is_larger() -> None:
    progress = Progress()
    assert progress.expected_s("text", 1) == math.inf
    progress.learn("text", 100, 2.0)
    progress.learn("text", 10, 1.0)
    assert progress.expected_s("vision", 1) == math.inf
    assert progress.expected_s("text", 10) == 2.0
    assert progress.expected_s("text", 300) == 18.0
    progress.learn("text", 10, 3.0)
    assert progress.expected_s("text", 100) == 3.0


def test_a_piece_that_fails_teaches_nothing() -> None:
    progress = Progress()

    def layer(hidden: torch.Tensor) -> None:
        assert progress.piece.began_s
        raise MemoryError

    with pytest.raises(MemoryError):
        progress.marked("text", layer)(torch.zeros(1, 2, 3))
    assert progress.piece == Piece()
    assert progress.expected_s("text", 1) == math.inf


def test_every_layer_of_an_engine_is_a_piece() -> None:
    engine = tiny_engine()
    engine.add(random_prompt(1, seed=1).request("a", max_tokens=2))
    while engine.has_work:
        engine.step()
    assert engine.progress.expected_s("text", 1) < math.inf
    assert engine.progress.expected_s("vision", 1) < math.inf
    assert engine.progress.piece == Piece()
