"""What this machine and this installation are: `blockzo env [--json]`.

Every probe is guarded: one that fails is reported as `{"error": why}` in its place, so that the report of a broken
installation is complete but for the broken part.
"""

from __future__ import annotations

import importlib.util
import json as json_module
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockzo.cli.environment_text import as_text

if TYPE_CHECKING:
    from blockzo.ops.backends.base import Entry

PACKAGES = (
    "torch numpy transformers safetensors typer rich matplotlib triton flwr gguf accelerate peft pybind11".split()
)
PREFIXES = ("BLOCKZO_", "OMP_", "KMP_", "GOMP_", "MKL_", "TRITON_", "CUDA_", "NVIDIA_VISIBLE", "TORCH_", "HF_", "CXX")
SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")
Report = dict[str, Any]


def report(run_self_test: bool = True) -> Report:
    """Everything known, as plain JSON types. Raises nothing.

    Args:
        run_self_test: compare every backend with the vectors and the reference, in a process of its own (seconds).
    """
    probes: dict[str, Callable[[], Any]] = {
        "versions": versions,
        "platform": machine,
        "build": build,
        "cpu": cpu,
        "threads": threads,
        "cuda": cuda,
        "backends": backends,
        "operations": operations,
        "environment": variables,
    }
    if run_self_test:
        probes["self_test"] = self_test
    return {name: guarded(probe) for name, probe in probes.items()}


def guarded(probe: Callable[[], Any]) -> Any:
    try:
        return probe()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def versions() -> Report:
    """Installed versions, read without importing anything that may be broken."""

    def installed(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    def own() -> tuple[str, str]:
        import blockzo
        from blockzo.noise import CONTRACT

        return blockzo.__version__, CONTRACT

    found: Report = {"python": platform.python_version()}
    own_versions = guarded(own)
    if isinstance(own_versions, tuple):
        found["blockzo"], found["contract"] = own_versions
    else:
        found["blockzo"] = own_versions
    found.update({package: guarded(partial(installed, package)) for package in PACKAGES})
    return found


def machine() -> Report:
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": guarded(_cpu_name),
        "logical_cpus": os.cpu_count(),
        "usable_cpus": guarded(lambda: len(os.sched_getaffinity(0)))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "python": sys.executable,
        "package": guarded(lambda: str(resources.files("blockzo"))),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def build() -> Report:
    """What setup.py wrote about the native kernels when this copy was built."""
    file = resources.files("blockzo").joinpath("_build.json")
    if not file.is_file():
        return {
            "native": False,
            "reason": "this source tree was never built; run scripts/setup.sh, or pip install .",
        }
    found: Report = json_module.loads(file.read_text(encoding="utf-8"))
    return found


PROBE = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location(sys.argv[1], sys.argv[2])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
facts = "compiled", "available", "chosen"
print(json.dumps({name: getattr(module, name)() for name in facts if hasattr(module, name)}))
"""


def _tried(extension: str) -> Report:
    """What a compiled module says of itself, loaded in a process of its own: a damaged file can kill the one that loads it."""
    spec = importlib.util.find_spec(extension)
    if spec is None or spec.origin is None:
        return {"missing": f"not installed: {build().get('reason') or f'this copy has no {extension}'}"}
    command = [sys.executable, "-c", PROBE, extension, spec.origin]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        ending = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(
            f"{spec.origin} cannot be loaded ({ending}): {last}; install blockzo again with a C++ compiler"
        )
    found: Report = json_module.loads(done.stdout)
    return found


def cpu() -> Report:
    """Instruction sets of the compiled kernels: those in the extension, those this CPU has, the one in use."""
    tried = _tried("blockzo._native")
    if "missing" in tried:
        return {"native": tried["missing"]}
    found = {"native": "installed", **tried}
    forced = os.environ.get("BLOCKZO_ISA")
    if forced:
        if forced not in found["available"]:
            raise RuntimeError(f"BLOCKZO_ISA is {forced!r}; expected one of {' '.join(found['available'])}")
        found["chosen"] = forced
    asked = os.environ.get("BLOCKZO_BACKEND")
    if asked not in (None, "", "cpu"):
        found["chosen"] = f"none: BLOCKZO_BACKEND={asked} leaves the kernels aside"
    return found


def threads() -> Report:
    import torch

    return {"torch": torch.get_num_threads(), "torch_interop": torch.get_num_interop_threads()}


def backends() -> dict[str, Report]:
    """Every backend of the registry: what it is, whether it can be loaded, and the switches that it follows."""
    from blockzo.ops.backends.registry import BACKENDS

    found = {}
    for name, entry in BACKENDS.items():
        missing = _missing(entry)
        found[name] = {
            "kernels": entry.what,
            "serves": f"tensors on {', '.join(entry.devices)}" if entry.devices else "what no other backend serves",
            "state": missing or "loads",
            **({"experimental": entry.experimental} if entry.experimental else {}),
            **({} if missing else guarded(entry.parts)),
            **({"switches": dict(entry.switches)} if entry.switches else {}),
        }
    return found


def _missing(entry: Entry) -> str:
    """Why a backend cannot be loaded; "" where it can. Its compiled module is tried in another process first."""
    if entry.extension:
        tried = guarded(partial(_tried, entry.extension))
        if "error" in tried:
            return str(tried["error"])
        if "missing" in tried:
            return str(tried["missing"])
    try:
        entry.open()
    except Exception as error:
        advice = f": {entry.advice}" if isinstance(error, ImportError) and entry.advice else ""
        return f"{type(error).__name__}: {error}{advice}"
    return ""


def operations() -> dict[str, Report]:
    """Operation -> backend -> True, or why another serves."""
    from blockzo.ops.backends.registry import BACKENDS
    from blockzo.ops.catalogue import OPERATIONS

    missing = {name: _missing(entry) for name, entry in BACKENDS.items()}

    def state(backend: str, function: str) -> bool | str:
        if missing[backend]:
            return missing[backend]
        own, other = (getattr(BACKENDS[name].open(), function) for name in (backend, "reference"))
        return backend == "reference" or own is not other or "no kernel: the reference serves"

    return {
        name: {backend: guarded(partial(state, backend, operation.serves)) for backend in BACKENDS}
        if operation.serves is not None
        else {backend: backend == "reference" or "no kernel: torch alone serves" for backend in BACKENDS}
        for name, operation in OPERATIONS.items()
    }


def cuda() -> Report:
    """Whether torch sees a GPU, and which compiler and kernels there are for it."""
    import torch

    found: Report = {
        "torch_cuda": torch.version.cuda,
        "available": guarded(torch.cuda.is_available),
        "nvcc": shutil.which("nvcc"),
    }
    if found["available"] is True:
        count = torch.cuda.device_count()
        found["devices"] = [guarded(partial(_device, i)) for i in range(count)]
    return found


def _device(number: int) -> Report:
    import torch

    properties = torch.cuda.get_device_properties(number)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
    }


def variables() -> dict[str, str]:
    """Variables in force that change builds, threads or devices; credentials among them are not shown."""
    return {
        name: "(set)" if any(word in name for word in SECRETS) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(PREFIXES)
    }


def self_test() -> Report:
    from blockzo.cli.selftest import isolated_self_test

    checks = isolated_self_test()
    failed = [{"name": check.name, "detail": check.detail} for check in checks if not check.ok]
    return {"ok": bool(checks) and not failed, "checks": len(checks), "failed": failed}


def healthy(found: Mapping[str, Any]) -> bool:
    """True where no probe failed and the self-test, if it was run, found the contract's bits."""
    if any(isinstance(part, Mapping) and "error" in part for part in found.values()):
        return False
    test = found.get("self_test")
    return test is None or (isinstance(test, Mapping) and test.get("ok") is True)


def render(found: Mapping[str, Any]) -> str:
    """The report as indented text."""
    return as_text(found, healthy(found))


def main(json: bool = False) -> int:
    """Prints the report to stdout. Returns 0 where all is well, 1 where something is wrong; raises nothing."""
    found = report()
    try:
        text = json_module.dumps(found, indent=1, default=str) if json else render(found)
    except Exception as error:
        text = f"the report could not be written ({type(error).__name__}: {error}); as it is: {found!r}"
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return 0 if healthy(found) else 1
