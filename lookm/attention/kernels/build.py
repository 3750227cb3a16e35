"""Compiling the C++ kernels on demand, once per source, torch and processor.

The finished library is moved into the cache in one step, so a start that is killed while compiling
leaves nothing half-made behind. Knows compilers and files; knows nothing about attention.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

NAME = "lookm_cpu_kernels"
SOURCE = Path(__file__).with_name("cpu_kernels.cpp")
_COMPILERS = ("g++", "c++", "clang++")
_FLAGS = ("-O3", "-fno-math-errno", "-fopenmp")  # without OpenMP, parallel_for is a plain loop
_CPU_FLAGS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}


def missing_tools() -> list[str]:
    """What compiling needs and this machine lacks; empty where the kernel can be built."""
    missing = [] if shutil.which("ninja", path=_path()) else ["ninja"]
    if not any(shutil.which(compiler, path=_path()) for compiler in _COMPILERS):
        missing.append("a C++ compiler")
    return missing


def load_kernel() -> Any:
    """The extension module, from the cache or compiled now (half a minute); loaded once.

    Raises `RuntimeError` or `OSError` where it cannot be compiled or the cache cannot be written.
    """
    library = cached_library()
    if not library.exists():
        _compile(library)
    return _loaded(library)


@functools.cache
def _loaded(library: Path) -> Any:
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cached_library() -> Path:
    """Where the library for these sources, torch, Python and processor is kept."""
    capability = torch.backends.cpu.get_cpu_capability()
    facts = (
        SOURCE.read_text(),
        *(header.read_text() for header in sorted(SOURCE.parent.glob("*.hpp"))),
        torch.__version__,
        sys.version,
        platform.machine(),
        capability,
        *_FLAGS,
    )
    key = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "lookm" / f"{NAME}-{key}.so"


def _path() -> str:
    """Where tools are looked for: PATH, and beside this Python (`.venv/bin`, not activated)."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])


@contextlib.contextmanager
def _tools() -> Iterator[None]:
    """torch finds ninja by PATH alone; lend it ours while it compiles."""
    before = os.environ.get("PATH")
    os.environ["PATH"] = _path()
    try:
        yield
    finally:
        if before is None:
            del os.environ["PATH"]
        else:
            os.environ["PATH"] = before


def _compile(library: Path) -> None:
    from torch.utils.cpp_extension import load

    library.parent.mkdir(parents=True, exist_ok=True)
    cpu_flags = _CPU_FLAGS.get(torch.backends.cpu.get_cpu_capability(), ())
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder, _tools():
        load(
            name=NAME,
            sources=[str(SOURCE)],
            extra_cflags=[*_FLAGS, *cpu_flags],
            build_directory=folder,
        )
        (Path(folder) / f"{NAME}.so").replace(library)
