"""The GPU grid in one call: how near decoding is to the roofline, and what looking costs and buys.

    python -m lookm.bench.gpu                       # LLaVA-1.5-7B's shape, random weights, CUDA
    python -m lookm.bench.gpu --shape tiny --device cpu --out /tmp/try

Writes `gpu.json` and `gpu.md` into `--out` after every section, so that a section that fails, or a
run that is cut off, leaves the others: a section is its numbers, or {"error": why}. Needs torch,
transformers and triton, nothing of the HTTP server.
"""

import argparse
import importlib.metadata
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lookm.bench.gpu.fixture import SCALES, Lab, free
from lookm.bench.gpu.kernels import kernels, linears
from lookm.bench.gpu.profile import profiled
from lookm.bench.gpu.sections import (
    Numbers,
    bandwidth,
    capacity,
    conversation,
    decode,
    equality,
    generate,
    prefill,
    vision,
)
from lookm.bench.gpu.table import markdown
from lookm.bench.provenance import provenance

RESULTS = Path("gpu-run")
Section = Callable[[Lab], Numbers]
SECTIONS: dict[str, Section] = {
    "bandwidth": bandwidth,
    "kernels": kernels,
    "linears": linears,
    "generate": generate,
    "vision": vision,
    "decode": decode,
    "capacity": capacity,
    "prefill": prefill,
    "conversation": conversation,
    "equality": equality,
    "profile": profiled,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sections; returns 1 where one has failed."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device; --device cpu --shape tiny tries the code", file=sys.stderr)
        return 2
    dtype = torch.float32 if options.device == "cpu" else getattr(torch, options.dtype)
    started_s = time.monotonic()
    report: dict[str, Any] = {
        "kind": "gpu",
        **provenance(
            f"python -m lookm.bench.gpu --shape {options.shape} --device {options.device}"
        ),
        "device": device_name(options.device),
        "triton": triton_version(),
        "shape": options.shape,
        "dtype": str(dtype).removeprefix("torch."),
        "sections": {},
    }
    lab = Lab.open(SCALES[options.shape], options.device, dtype)
    report["prompt_tokens"] = len(lab.prompt()[0])
    for name in options.sections or SECTIONS:
        spent_s = time.monotonic() - started_s
        if spent_s > options.budget_s:
            report["sections"][name] = {"error": f"not begun: {spent_s:.0f} s were spent"}
        else:
            report["sections"][name] = run(name, lab)
        write(report, options.out)
        print(f"{name}: {time.monotonic() - started_s:.0f} s", file=sys.stderr)
    print(markdown(report))
    return int(any("error" in section for section in report["sections"].values()))


def run(name: str, lab: Lab) -> Numbers:
    """One section's numbers, or why there are none."""
    started_s = time.monotonic()
    try:
        numbers = SECTIONS[name](lab)
    except Exception as error:
        logging.getLogger(__name__).exception("section %s", name)
        numbers = {"error": f"{type(error).__name__}: {first_line(error)}"}
        lab.close_engine()
    free(lab.device)
    return {**numbers, "spent_s": time.monotonic() - started_s}


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def write(report: dict[str, Any], folder: Path) -> None:
    """`gpu.json` and `gpu.md`, whole each time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "gpu.md").write_text(markdown(report))


def triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def device_name(device: str) -> str:
    if device != "cuda":
        return device
    properties = torch.cuda.get_device_properties(0)
    return (
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lookm.bench.gpu")
    parser.add_argument("--shape", choices=sorted(SCALES), default="7b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    parser.add_argument("--sections", nargs="*", choices=list(SECTIONS))
    parser.add_argument("--budget-s", type=float, default=480, help="begin no section after this")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
