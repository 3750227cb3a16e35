"""Trees as padded tensors. Knows token ids and row layout; nothing of weights or accuracy."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from lookm.demo.scenes import Scene
from lookm.demo.training.bank import PATCHES
from lookm.demo.training.chat import Piece, Pieces, Tree, draw_tree, draw_world
from lookm.demo.training.forward import Rows


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows, and the task and number of images of every answer in them."""

    rows: Rows
    tasks: tuple[str, ...]
    num_images: int


class Batcher:
    """Draws trees over a bank of scenes and lays them out; a seed and a step name a batch."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, scenes: Sequence[Scene], seed: int, tokens: int
    ) -> None:
        self.scenes, self.seed, self.tokens = scenes, seed, tokens
        self.all = range(len(scenes))
        self.singles = [i for i in self.all if len(scenes[i].shapes) == 1]
        self.begin: int = tokenizer.convert_tokens_to_ids("<s>")
        self.image: int = tokenizer.convert_tokens_to_ids("<image>")

        @functools.lru_cache(maxsize=200_000)
        def encode(text: str) -> tuple[int, ...]:
            ids: list[int] = []
            for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
                ids += [token] * (PATCHES if token == self.image else 1)
            return tuple(ids)

        self.encode = encode

    def draw(self, step: int, num_images: int) -> Batch:
        """The batch of a step: as many trees as fit into about `tokens` tokens."""
        rng = random.Random(f"llava-demo batch {self.seed} {step}")
        branch_chars = 700 + 60 * num_images
        per_tree = 25 + (PATCHES + 1) * num_images + branch_chars // 4
        trees, pictures = [], []
        for _ in range(max(1, self.tokens // per_tree)):
            # Half of the worlds hold single objects only: lists are asked about no others.
            numbers = self.singles if rng.random() < 0.5 else self.all
            chosen = rng.choices(numbers, k=num_images)
            world = draw_world(rng, [self.scenes[i] for i in chosen])
            trees.append(draw_tree(rng, world, branch_chars))
            pictures += chosen
        return self.lay_out(trees, pictures, num_images)

    def lay_out(self, trees: Sequence[Tree], pictures: Sequence[int], num_images: int) -> Batch:
        """Pad trees to one shape; `pictures` are the bank rows of all their images in order."""
        flat = [self._flatten(tree) for tree in trees]
        root_tokens = max(len(row.root) for row in flat)
        branch_tokens = max(sum(map(len, row.branches)) for row in flat)
        branch_tokens, root_tokens = -(-branch_tokens // 16) * 16, -(-root_tokens // 16) * 16
        tokens = root_tokens + branch_tokens
        ids = np.zeros((len(flat), tokens), np.int64)
        pos = np.zeros((len(flat), tokens), np.int64)
        group = np.full((len(flat), tokens), -1, np.int32)  # 0 root, 1.. branches, -1 padding
        target = np.full((len(flat), tokens), -1, np.int64)
        tasks: list[str] = []
        for i, row in enumerate(flat):
            at = 0
            for number, part in enumerate((row.root, *row.branches)):
                at = root_tokens if number == 1 else at
                span = slice(at, at + len(part))
                ids[i, span], group[i, span] = part.ids, number
                start = 0 if number == 0 else len(row.root)
                pos[i, span] = np.arange(start, start + len(part))
                for first, last, task in part.answers:
                    target[i, at + first - 1 : at + last - 1] = len(tasks)
                    tasks.append(task)
                at += len(part)
        rows = _rows(ids, pos, group, target, root_tokens, np.asarray(pictures), self.image)
        return Batch(rows, tuple(tasks), num_images)

    def _flatten(self, tree: Tree) -> _FlatTree:
        root = self._part((Piece("<s>"), *tree.root))
        return _FlatTree(root, [self._part(branch) for branch in tree.branches])

    def _part(self, pieces: Pieces) -> _Part:
        ids: list[int] = []
        answers: list[tuple[int, int, str]] = []
        for piece in pieces:
            new = self.encode(piece.text)
            if piece.task is not None:
                answers.append((len(ids), len(ids) + len(new), piece.task))
            ids += new
        return _Part(ids, answers)


@dataclass(frozen=True, slots=True)
class _Part:
    """Token ids, and the answers in them as (first, last + 1, task)."""

    ids: list[int]
    answers: list[tuple[int, int, str]]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class _FlatTree:
    root: _Part
    branches: list[_Part]


def _rows(
    ids: np.ndarray,
    pos: np.ndarray,
    group: np.ndarray,
    target: np.ndarray,
    root_tokens: int,
    pictures: np.ndarray,
    image: int,
) -> Rows:
    """Answers of place t are predicted at t, so `target` already points at the token before."""
    ids_t = torch.from_numpy(ids)
    answer_of = torch.from_numpy(target).flatten()
    answer_at = (answer_of >= 0).nonzero().squeeze(1)
    return Rows(
        ids=ids_t,
        pos=torch.from_numpy(pos),
        group=torch.from_numpy(group),
        picture=torch.from_numpy(pictures.astype(np.int64)),
        picture_at=(ids_t.flatten() == image).nonzero().squeeze(1),
        answer_at=answer_at,
        answer_target=ids_t.flatten()[answer_at + 1],
        answer_of=answer_of[answer_at],
        root_tokens=root_tokens,
    )
