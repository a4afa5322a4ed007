"""Does this machine give the numbers of the contract? Vectors and every operation, on each backend and instruction set.

Run as `python -m blockzo.cli.selftest` it prints JSON; `blockzo env` does so, as a kernel that dies must not take the
report with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from blockzo.noise import CONTRACT, Noise, philox, stream_id
from blockzo.ops.backends import reference
from blockzo.ops.backends.base import Absent, Backend, Entry
from blockzo.ops.backends.registry import BACKENDS
from blockzo.ops.catalogue import KNOWN, Call, cases
from blockzo.ops.steps import make_step

VECTORS = "noise-v1-vectors.json"
LOW_RANK_VECTORS = "noise-v1-low-rank-vectors.json"
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 7, 128, 1009)


@dataclass(frozen=True)
class Check:
    """One comparison; `detail` says what differed, or why it could not be made."""

    name: str
    ok: bool
    detail: str = ""


def self_test() -> list[Check]:
    """Every check on this process's machine; a check that raises counts as failed and says why."""
    checks = [
        _checked("reference: Philox known answers", _philox),
        _checked("reference: vectors", _vectors_of_reference),
        *(_checked(f"torch: {name}", known) for name, known in KNOWN.items()),
    ]
    for entry in BACKENDS.values():
        checks += checks_of(entry)
    return checks


def checks_of(entry: Entry) -> list[Check]:
    """All variants of a backend against the reference; none where it is not installed, which `blockzo env` reports by itself,
    or this machine has no device that it serves.
    """
    device = next(filter(_usable, entry.devices), None)
    if device is None:
        return []
    try:
        backend = entry.open()
    except Absent:
        return []
    except Exception as error:
        return [Check(f"{entry.name}: load", False, f"{type(error).__name__}: {error}")]
    return [
        _checked(f"{entry.name} {variant}".rstrip() + f": {name}", compare)
        for variant in entry.variants()
        for name, compare in _comparisons(backend, device)
    ]


def _usable(device: str) -> bool:
    """Whether torch has such a device here, as far as it says."""
    says = getattr(getattr(torch, device, None), "is_available", None)
    return says is None or bool(says())


def _checked(name: str, compare: Callable[[], str]) -> Check:
    try:
        detail = compare()
    except Exception as error:  # a diagnostic reports, whatever goes wrong
        detail = f"{type(error).__name__}: {error}"
    return Check(name, not detail, detail)


def _philox() -> str:
    for counter, key, expected in KNOWN_ANSWERS:
        block = counter[0] | counter[1] << 32
        signed = block - (1 << 64) if block >> 63 else block
        seed = key[0] | key[1] << 32
        words = philox(torch.tensor([signed]), seed, counter[2], counter[3])
        found = tuple(int(word) for word in words)
        if found != expected:
            return f"counter {counter}, key {key}: found {found}, expected {expected}"
    return ""


def vectors(name: str = VECTORS) -> list[dict[str, Any]]:
    """The cases of a packaged file of vectors."""
    loaded = json.loads(resources.files("blockzo").joinpath(name).read_text(encoding="utf-8"))
    if loaded["contract"] != CONTRACT:
        raise ValueError(f"{name} is for {loaded['contract']!r}; expected {CONTRACT!r}")
    cases: list[dict[str, Any]] = loaded["cases"]
    return cases


def bits_of(tensor: Tensor) -> list[str]:
    return [f"{value & 0xFFFFFFFF:08x}" for value in tensor.to(torch.float32).view(torch.int32).tolist()]


def _vectors_of_reference() -> str:
    for case in vectors():
        if stream_id(case["name"]) != case["stream"]:
            return f"stream of {case['name']!r}: found {stream_id(case['name'])}, expected {case['stream']}"
        noise = Noise(case["seed"], case["distribution"])
        values = noise.sample(case["stream"], len(case["bits"]), case["direction"], case["start"])
        if bits_of(values) != case["bits"]:
            return (
                f"{case['distribution']} {case['name']!r} from {case['start']}: {_first(bits_of(values), case['bits'])}"
            )
    return ""


def _first(found: list[Any], expected: list[Any]) -> str:
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a != b:
            return f"value {place} is {a}, expected {b}"
    return "equal"


def _comparisons(backend: Backend, device: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """Every operation of a backend against the reference, and the vectors by way of 0 + 1 * z."""
    yield "vectors", partial(_vectors_of_backend, backend, device)
    if backend.LOW_RANK:
        yield "vectors of low rank", partial(_low_rank_vectors, backend, device)
    for dtype in DTYPES:
        text = str(dtype).removeprefix("torch.")
        for distribution in ("rademacher", "gaussian"):
            for operation, case, call in cases(distribution, backend.PER_WEIGHT):
                compare = partial(_compare, backend, call, dtype, operation.tolerance, device)
                yield f"{case} {distribution} {text}", compare


def _vectors_of_backend(backend: Backend, device: str) -> str:
    for case in vectors():
        zeros = torch.zeros(len(case["bits"]), device=device)
        out = torch.full_like(zeros, float("nan"))
        step = make_step(Noise(case["seed"], case["distribution"]), [case["direction"]], [1.0])
        backend.perturbed_copy(out, zeros, case["start"], step, case["stream"])
        if bits_of(out) != case["bits"]:
            return f"{case['distribution']} {case['name']!r} from {case['start']}: {_first(bits_of(out), case['bits'])}"
    return ""


def _low_rank_vectors(backend: Backend, device: str) -> str:
    """A block of a matrix, row by row."""
    for case in vectors(LOW_RANK_VECTORS):
        step = make_step(Noise(case["seed"], case["distribution"], case["rank"]), [case["direction"]], [1.0])
        for number, bits in enumerate(case["bits"], case["row"]):
            zeros = torch.zeros(len(bits), device=device)
            out = torch.full_like(zeros, float("nan"))
            start = number * case["shape"][1] + case["column"]
            backend.perturbed_copy(out, zeros, start, step.of_shape(case["shape"]), case["stream"])
            if bits_of(out) != bits:
                return f"{case['distribution']} rank {case['rank']}, row {number}: {_first(bits_of(out), bits)}"
    return ""


def _compare(backend: Backend, call: Call, dtype: torch.dtype, tolerance: float | None, device: str) -> str:
    for size in SIZES:
        # weights of mixed scales, zero among them, without torch's global generator
        weights = ((torch.arange(size) * 37 % 101 - 50).to(torch.float32) / 16.0 ** (torch.arange(size) % 4)).to(dtype)
        found, expected = call(backend, weights.to(device, copy=True)).cpu(), call(reference, weights.clone())
        if tolerance is not None:
            # sums in another order; 16-bit products may round the moved weight
            bound = tolerance if dtype == torch.float32 else 2e-2
            apart = float((found.double() - expected.double()).abs().max())
            largest = float(expected.double().abs().max())
            if not apart <= bound * largest:
                return f"{size} weights: results differ by {apart:.3g}, the largest is {largest:.3g}"
            continue
        integer = (
            torch.int64 if found.dtype == torch.float64 else torch.int16 if found.element_size() == 2 else torch.int32
        )
        a, b = (
            found.contiguous().view(integer).flatten().tolist(),
            expected.contiguous().view(integer).flatten().tolist(),
        )
        if a != b:
            return f"{size} weights: {_first(a, b)} (as integers of the bit pattern)"
    return ""


def isolated_self_test(timeout: float = 120.0) -> list[Check]:
    """`self_test` in a process of its own, which may die without harm to this one."""
    command = [sys.executable, "-m", "blockzo.cli.selftest"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=dict(os.environ), check=False
        )
    except Exception as error:  # no process, no time: a finding, not a crash
        return [Check("self-test process", False, f"{type(error).__name__}: {error}")]
    try:
        return [Check(**entry) for entry in json.loads(done.stdout.splitlines()[-1])]
    except Exception:
        ending = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        return [Check("self-test process", False, f"ended with {ending}: {(done.stderr or done.stdout)[-2000:]}")]


if __name__ == "__main__":
    print(json.dumps([asdict(check) for check in self_test()]))
