"""The oldest versions that serve of what the kernels and operations are written for; pyproject.toml says the same."""

from __future__ import annotations

import re

OLDEST = {
    # torch.library.register_vmap
    "torch": (2, 5),
    # the order of loads and waits in matrix products on Hopper (docs/lab/gpu.md)
    "triton": (3, 6),
}


def too_old(package: str, version: str) -> str | None:
    """What is wrong with that version of a package, and what to do; None where it serves, or says no number."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    oldest = OLDEST[package]
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= oldest:
        return None
    needed = ".".join(map(str, oldest))
    return f"{package} {version} is installed; blockzo needs {needed} or newer: pip install '{package}>={needed}'"
