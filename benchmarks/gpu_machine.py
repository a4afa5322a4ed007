"""What the GPU's tests and benchmarks need of a machine: each import with its version, the device, and what is missing.

    python benchmarks/gpu_machine.py

Status 1 where something is missing that nothing can do without.
"""

from __future__ import annotations

import importlib
import platform
import shutil
import sys

NEEDED = ("torch", "triton", "numpy", "msgspec", "pytest", "setuptools", "pybind11")
GOOD = {
    "xdist": "tests run one after the other",
    "transformers": "part step is not measured",
    "ninja": "the build is slower",
}


def version(name: str) -> str | None:
    """None: it cannot be imported."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        print(f"{name:14s} MISSING: {error}", flush=True)
        return None
    found = str(getattr(module, "__version__", "there"))
    print(f"{name:14s} {found}", flush=True)
    return found


def main() -> int:
    print(f"{'python':14s} {platform.python_version()}, {platform.machine()}", flush=True)
    missing = [name for name in NEEDED if version(name) is None]
    for name, without in GOOD.items():
        if version(name) is None:
            print(f"{'':14s} without it {without}", flush=True)
    for tool in ("nvcc", "g++"):
        print(f"{tool:14s} {shutil.which(tool) is not None and 'there' or 'MISSING'}", flush=True)
    if missing:
        print(f"expected {', '.join(missing)} as well: bring wheels, there may be no network", flush=True)
        return 1
    import torch

    if not torch.cuda.is_available():
        print("torch finds no GPU; expected one", flush=True)
        return 1
    major, minor = torch.cuda.get_device_capability()
    memory = torch.cuda.get_device_properties(0).total_memory >> 30
    print(f"{torch.cuda.get_device_name()}, sm_{major}{minor}, {memory} GiB, CUDA {torch.version.cuda}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
