"""All backends, one line each: the choice (`choice.py`), `blockzo env`, its self-test and the docs walk this table."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import cache

import torch

from blockzo.ops.backends import reference
from blockzo.ops.backends.base import Absent, Backend, Entry
from blockzo.ops.versions import too_old


def _reference() -> Backend:
    return reference


def _cpu() -> Backend:
    from blockzo.ops.backends import cpu

    return cpu


def _instruction_sets() -> Iterator[str]:
    from blockzo.ops.backends import cpu

    yield from cpu.instruction_sets()


def _gpu() -> Backend:
    if torch.version.hip is not None:
        raise Absent("torch is built for ROCm, the kernels for CUDA")
    import triton

    if old := too_old("triton", triton.__version__):
        raise Absent(f"{old}, or a torch that brings it")
    from blockzo.ops.backends.gpu import kernels

    return kernels


def _gpu_parts() -> dict[str, str]:
    from blockzo.ops.backends.gpu import cuda

    return {"cuda library": cuda.state()}


BACKENDS = {
    entry.name: entry
    for entry in (
        Entry(
            "cpu",
            "compiled C++ kernels",
            ("cpu",),
            _cpu,
            advice="install a C++ compiler and blockzo again",
            required_by="BLOCKZO_REQUIRE_NATIVE",
            switches={
                "BLOCKZO_ISA": "one instruction set: baseline, avx2, avx512, amx, neon, neon-bf16",
                "BLOCKZO_REQUIRE_NATIVE": "1 makes their absence an error",
            },
            extension="blockzo._native",
            variants=_instruction_sets,
        ),
        Entry(
            "gpu",
            "Triton and CUDA kernels",
            ("cuda",),
            _gpu,
            advice="pip install triton, beside a torch for CUDA",
            switches={
                "BLOCKZO_CUDA": "0 leaves the CUDA library aside",
                "BLOCKZO_LINEAR_CHOICE": "another table of ways for the linear layer",
                "BLOCKZO_PRODUCT_NOISE": "exact: Gaussian numbers of products by the contract's own arithmetic",
            },
            experimental="compiled and interpreted, never run on a GPU",
            parts=_gpu_parts,
        ),
        Entry("reference", "torch operations", (), _reference),
    )
}
"""By name; of two that serve a device the first is taken."""


def asked_for() -> Entry | None:
    """What BLOCKZO_BACKEND names; None where it is not set.

    Raises:
        ValueError: there is no such backend.
    """
    name = os.environ.get("BLOCKZO_BACKEND")
    if not name:
        return None
    if name not in BACKENDS:
        raise ValueError(f"BLOCKZO_BACKEND is {name!r}; expected one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


@cache
def loaded(name: str) -> Backend | None:
    """A backend, or None where it cannot be loaded, which is said once.

    Raises:
        ImportError: it cannot be loaded, and an environment variable asks for it.
    """
    entry = BACKENDS[name]
    try:
        return entry.open()
    except ImportError as error:
        text = f"the {name} backend of blockzo ({entry.what}) cannot be loaded ({error})"
        demands = [entry.required_by] if os.environ.get(entry.required_by, "0") not in ("", "0") else []
        demands += ["BLOCKZO_BACKEND"] if asked_for() is entry else []
        if demands:
            raise ImportError(f"{text} and {' and '.join(demands)} is set; {entry.advice}") from error
    warnings.warn(
        f"{text}; the torch reference serves instead, many times slower: {entry.advice}", RuntimeWarning, stacklevel=5
    )
    return None
