"""Train the demo model from nothing: `python -m lookm.demo.training.train --out DIR --minutes 90`.

Knows the order of things: pictures, eyes, language, checkpoint. The arithmetic is in `forward`, the
data in `batches`, the schedule in `curriculum`. Training is plain: whole conversations, full causal
attention, no cache dropout and nothing else that imitates what a compression method does.

The working directory (default: under the system's temporary directory) holds pictures, the tower
and `state.pt`; a run that finds them goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from lookm.demo.training.bank import Bank, open_bank
from lookm.demo.training.batches import Batch
from lookm.demo.training.build import build_config, build_processor, build_tokenizer, save, wrap
from lookm.demo.training.curriculum import Curriculum
from lookm.demo.training.feed import Source, batches
from lookm.demo.training.forward import TreeForward
from lookm.demo.training.optim import Clock, Optimizer
from lookm.demo.training.vision import PatchHeads, look, train_tower

#: What glibc and OpenMP need for many short steps on a CPU (15x on the vision step).
CPU_ENVIRONMENT: Final = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1000000000",
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
_SAVE_EVERY_S: Final = 240.0
_LOG_EVERY: Final = 50
_NAMING: Final = 1.0  # weight of naming patches beside answering
_WORKERS: Final = 12  # processes that draw pictures and batches beside a GPU


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line."""

    out: Path
    work_dir: Path
    minutes: float
    vision_minutes: float
    device: str
    seed: int
    batch_tokens: int
    rate: float
    compiled: bool
    scenes: int


def parse(arguments: list[str] | None = None) -> Options:
    """Options from the command line."""
    parser = argparse.ArgumentParser(prog="python -m lookm.demo.training.train")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()) / "llava-demo")
    parser.add_argument("--minutes", type=float, default=90.0, help="language training time")
    parser.add_argument("--vision-minutes", type=float, default=10.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, help="tokens per step (6144; 131072 on a GPU)")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--no-compile", dest="compiled", action="store_false")
    parser.add_argument("--scenes", type=int, default=100_000, help="pictures to render")
    options = parser.parse_args(arguments)
    if options.batch_tokens is None:
        options.batch_tokens = 6144 if options.device == "cpu" else 131_072
    return Options(**vars(options))


def main() -> None:
    """Train, then write the checkpoint."""
    options = parse()
    if options.device == "cpu" and "MALLOC_TOP_PAD_" not in os.environ:
        environment = {**os.environ, **CPU_ENVIRONMENT}
        os.execve(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]], environment)
    torch.manual_seed(options.seed)
    options.work_dir.mkdir(parents=True, exist_ok=True)
    _Training(options).run()


def _log(line: str) -> None:
    print(line, flush=True)


def _tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """A resumed run keeps the tokenizer it began with, whatever the tasks say now."""
    if not path.exists():
        build_tokenizer().backend_tokenizer.save(str(path))
    return wrap(Tokenizer.from_file(str(path)))


class _Training:
    """Everything one run holds."""

    def __init__(self, options: Options) -> None:
        self.options = options
        path = options.work_dir / "tokenizer.json"
        tokenizer = _tokenizer(path)
        self.processor = build_processor(tokenizer)
        self.model = LlavaForConditionalGeneration._from_config(
            build_config(len(tokenizer)), attn_implementation="eager"
        )
        self.model.to(options.device)
        self.bank = self._see()
        self.source = Source(path, options.seed, options.batch_tokens, options.scenes)
        self.forward = TreeForward(self.model, options.compiled)
        self.heads = PatchHeads().to(options.device)
        named = (*self.model.named_parameters(), *self.heads.named_parameters())
        self.optimizer = Optimizer(named, options.rate, slow="vision_tower")
        self.curriculum, self.step, self.answers, self.tokens = Curriculum(), 0, 0, 0
        self.clock = Clock(options.minutes)
        self._resume()

    def _see(self) -> Bank:
        """Render the pictures, train (or load) the tower and put it into the model."""
        options, folder = self.options, self.options.work_dir
        workers = 2 if options.device == "cpu" else _WORKERS
        bank = open_bank(folder, "train", options.seed, options.scenes, workers)
        batch = 256 if options.device == "cpu" else 1024
        tower = train_tower(bank, options.vision_minutes, options.device, folder, batch, _log)
        self.model.model.vision_tower.load_state_dict(tower.state_dict())
        return bank

    @property
    def _state_path(self) -> Path:
        return self.options.work_dir / "state.pt"

    def _resume(self) -> None:
        if not self._state_path.exists():
            return
        state = torch.load(self._state_path, map_location=self.options.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for part, saved in zip(self.optimizer.parts, state["optimizer"], strict=True):
            part.load_state_dict(saved)
        self.curriculum = Curriculum(**state["curriculum"])
        self.step, self.answers, self.tokens = state["counts"]
        self.clock = Clock(self.options.minutes, state["used_s"])

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": [part.state_dict() for part in self.optimizer.parts],
            "curriculum": asdict(self.curriculum),
            "counts": (self.step, self.answers, self.tokens),
            "used_s": self.clock.used_s,
        }
        torch.save(state, self._state_path.with_suffix(".new"))
        self._state_path.with_suffix(".new").replace(self._state_path)
        save(self.model, self.processor, self.options.out)

    def _num_images(self, step: int) -> int:
        return self.curriculum.draw_num_images(
            random.Random(f"llava-demo sizes {self.options.seed} {step}")
        )

    def run(self) -> None:
        """Train until the time is up; save now and then and at the end."""
        saved_s, began_s = time.monotonic(), time.monotonic()
        processes = 0 if self.options.device == "cpu" else _WORKERS
        for batch in batches(self.source, self.step, self._num_images, processes):
            loss = self._train_on(batch)
            if self.curriculum.advance(self.clock.share_done):
                _log(json.dumps({"step": self.step, "max_images": self.curriculum.max_images}))
            if self.step % _LOG_EVERY == 0:
                spent_s, began_s = time.monotonic() - began_s, time.monotonic()
                self._report(loss, spent_s / _LOG_EVERY)
            if time.monotonic() - saved_s > _SAVE_EVERY_S:
                self._save()
                saved_s = time.monotonic()
            if self.clock.share_done >= 1.0:
                break
        self._save()
        self._report(loss, 0.0)

    def _train_on(self, batch: Batch) -> Tensor:
        rows = batch.rows.to(self.options.device)
        features, naming = self._look(batch.rows.picture.numpy())
        logits = self.forward(rows, features)
        loss = F.cross_entropy(logits, rows.answer_target)
        torch.autograd.backward(loss + _NAMING * naming)
        self.optimizer.step(self.clock.share_done)
        with torch.no_grad():
            wrong = (logits.argmax(-1) != rows.answer_target).float()
            mistakes = torch.zeros(len(batch.tasks), device=wrong.device)
            mistakes.index_add_(0, rows.answer_of, wrong)
        self.curriculum.record(batch.num_images, batch.tasks, (mistakes == 0).tolist())
        self.step += 1
        self.answers += len(batch.tasks)
        self.tokens += rows.ids.numel()
        return loss.detach()

    def _look(self, pictures: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Features of some pictures of the bank, and the loss of naming patches, also of others."""
        device, others = self.options.device, np.random.default_rng(self.step)
        more = others.integers(len(self.bank.pixels), size=self.options.batch_tokens // 48)
        rows = np.concatenate((pictures, more))
        features = look(
            self.model.model.vision_tower, torch.from_numpy(self.bank.pixels[rows]).to(device)
        )
        naming, _ = self.heads.loss(features, torch.from_numpy(self.bank.labels[rows]).to(device))
        return features[: len(pictures)], naming

    def _report(self, loss: Tensor, step_s: float) -> None:
        line = {
            "step": self.step,
            "s": round(self.clock.used_s),
            "step_s": round(step_s, 2),
            "loss": round(loss.item(), 4),
            "answers": self.answers,
            "tokens": self.tokens,
            "right": self.curriculum.summary(),
        }
        _log(json.dumps(line))


if __name__ == "__main__":
    main()
