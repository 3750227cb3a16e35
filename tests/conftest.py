"""Settings of the whole suite, made before torch is imported: one thread, no network.

Where there is no GPU, Triton kernels run in Triton's interpreter; it decides that when it is
imported.
"""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
