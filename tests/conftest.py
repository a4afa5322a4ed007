"""Settings that must stand before torch is imported, and one Hypothesis profile for all tests."""

from __future__ import annotations

import os

# spinning threads of several test processes fight over few cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# read when triton is first imported; the GPU's own tests run in a process without it (benchmarks/gpu_check.sh)
os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import HealthCheck, settings

settings.register_profile("blockzo", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("blockzo")

# they need a GPU and a process without TRITON_INTERPRET: benchmarks/gpu_check.sh
collect_ignore = ["cuda"]
