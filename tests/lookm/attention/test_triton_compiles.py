"""Every Triton kernel goes through Triton's compiler for every NVIDIA generation since Ampere."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
def test_every_kernel_compiles_and_fits_the_shared_memory(capability: Any, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run(
        [sys.executable, "-m", "tests.lookm.attention.compile_kernels", str(capability)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    names = {line.split()[0] for line in run.stdout.splitlines()}
    attention = {"_split", "_add_up", "_flash", "_sums", "_write", "_nearest", "_combine"}
    assert names == attention | {"_linear", "_rms_norm", "_silu_mul", "_rotate"}
