"""Which kernels this process uses, for attention and all beside it: decided once, at start.

Knows the names. Never falls back in silence: what was chosen, and why, is logged here.
"""

import importlib.util
import logging
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from lookm.attention.api import Backend, ModelKernels
from lookm.attention.reference import ReferenceAttention
from lookm.errors import ConfigError
from lookm.pages import read_rows, write_rows

logger = logging.getLogger(__name__)

NAMES = ("auto", "reference", "cpu", "triton")
OLDEST = (8, 0)  # compute capability that the Triton kernels are compiled for


#: Torch alone, on any device; the model is left as transformers has it.
REFERENCE = Backend("reference", ReferenceAttention(), write_rows, read_rows, reads_on_host=True)


def choose(name: str, device: torch.device | str, dtype: torch.dtype | None = None) -> Backend:
    """The backend called `name`; `"auto"` is the fastest that can run here.

    `"triton"` are the CUDA kernels (float32, bfloat16, float16), `"cpu"` the C++ ones (float32,
    bfloat16), both compiled at their first use. Raises `ConfigError` for a name that does not exist
    or cannot run here.
    """
    if name not in NAMES:
        raise ConfigError(f"unknown attention {name!r}: choose one of {', '.join(NAMES)}.")
    if name == "reference":
        return REFERENCE
    device = torch.device(device)
    if name == "triton" or (name == "auto" and device.type == "cuda"):
        problem, make = _triton_problem(device, dtype), _triton
    else:
        problem, make = _cpu_problem(device, dtype), _cpu
    if problem is None:
        try:
            return make(device)
        except (RuntimeError, OSError) as error:
            problem = f"the C++ kernels cannot be built: {str(error).strip().splitlines()[0]}"
    if name != "auto":
        raise ConfigError(f"attention {name!r} cannot be used: {problem}.")
    logger.warning("attention: reference (torch), because %s", problem)
    return REFERENCE


def _triton_problem(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Why the Triton kernels cannot run, or None."""
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        return f"the type is {dtype}"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the device is {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    if device.type != "cuda":
        return None
    if torch.cuda.get_device_capability(device) < OLDEST:
        return f"{torch.cuda.get_device_name(device)} is older than Ampere"
    missing = _missing_for_triton()
    return (
        f"Triton needs {' and '.join(missing)} (apt install gcc python3-dev)" if missing else None
    )


def _missing_for_triton() -> list[str]:
    """What Triton compiles its way to the driver with, and this machine lacks."""
    compilers = (os.environ.get("CC"), "gcc", "clang")
    missing = [] if any(name and shutil.which(name) for name in compilers) else ["a C compiler"]
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        missing.append("Python.h")
    return missing


def _triton(device: torch.device, /) -> Backend:
    from lookm.attention.kernels import triton_write
    from lookm.attention.kernels.gpu import TritonAttention

    logger.info("attention: triton (CUDA kernels)")
    kernels = TritonAttention()
    # In Triton's interpreter there is no clock to choose tiles by: the model stays as it is.
    model = triton_model_kernels() if device.type == "cuda" else None
    return Backend(
        "triton", kernels, triton_write.write_rows, read_rows, merges=kernels, model=model
    )


def triton_model_kernels() -> ModelKernels:
    """What a decoding layer takes in Triton."""
    from lookm.attention.kernels import triton_linear, triton_rows

    return ModelKernels(
        rms_norm=triton_rows.rms_norm,
        rotate=triton_rows.rotate,
        max_row=triton_rows.MAX_ROW,
        silu_mul=triton_rows.silu_mul,
        linear=triton_linear.linear,
        tiles=triton_linear.TILES,
    )


def _cpu_problem(device: torch.device, dtype: torch.dtype | None) -> str | None:
    """Why the C++ kernels cannot run, or None."""
    from lookm.attention.kernels.build import cached_library, missing_tools

    if device.type != "cpu":
        return f"the device is {device.type}"
    if dtype not in (None, torch.float32, torch.bfloat16):
        return f"the type is {dtype}"
    missing = [] if cached_library().exists() else missing_tools()
    return f"{' and '.join(missing)} is missing" if missing else None


def _cpu(_: torch.device, /) -> Backend:
    from lookm.attention.kernels import cpu_pages, cpu_rows
    from lookm.attention.kernels.build import cached_library, load_kernel
    from lookm.attention.kernels.cpu import CpuAttention

    if not cached_library().exists():
        logger.info("attention: compiling the C++ kernels, once; this takes half a minute")
    kernels = CpuAttention(load_kernel())
    logger.info("attention: cpu (C++ kernels)")
    # AVX2 and older: bfloat16 is read, not multiplied.
    few_rows = None if torch.ops.mkldnn._is_mkldnn_bf16_supported() else cpu_rows.linear
    model = ModelKernels(cpu_rows.rms_norm, cpu_rows.rotate, few_rows=few_rows)
    write, read = cpu_pages.write_rows, cpu_pages.read_rows
    return Backend("cpu", kernels, write, read, kernels, model, reads_on_host=True)
