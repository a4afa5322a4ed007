"""A GPU that compiles every launch and runs none, on a machine without one: what a GPU machine is to run is rehearsed on it.

    python tests/aot/rehearsal.py [--dry] --report FILE benchmarks/gpu.py --small --rounds 1
    python tests/aot/rehearsal.py [--dry] --report FILE pytest tests/cuda

Tensors of "cuda" lie on the CPU and new memory is zero, so results are wrong: run it with `python -O`, which drops assertions,
and ask the report what was launched. --dry: launches are noted, and not compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)
ROOT = Path(__file__).resolve().parents[2]
CPU = "cpu"


class Report:
    """Specialisations by kernel, CPU seconds of compiling, grids, and what failed."""

    def __init__(self) -> None:
        self.kernels: dict[str, int] = {}
        self.seconds = 0.0
        self.launches = 0
        self.failures: list[str] = []
        self.most_axes = 0

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(vars(self)), encoding="utf-8")


def work() -> float:
    """CPU seconds of this process and of those that it started (ptxas), whatever else the machine does."""
    return sum(os.times()[:4])


def driver() -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class Compiles(DriverBase):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            return "void*"

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def get_active_torch_device(self) -> Any:
            import torch

            return torch.device(CPU)

        def get_benchmarker(self) -> Any:
            raise NotImplementedError

        def get_current_device(self) -> int:
            return 0

        def set_current_device(self, device: int) -> None:
            pass

        def get_current_stream(self, device: int) -> int:
            return 0

    return Compiles()


def watch_launches(report: Report, dry: bool) -> None:
    from triton.runtime import driver as active
    from triton.runtime.jit import JITFunction

    active.set_active(driver())
    compile_one = JITFunction._do_compile

    def compiled(self: Any, key: Any, signature: Any, device: Any, *rest: Any) -> Any:
        report.kernels[self.__name__] = report.kernels.get(self.__name__, 0) + 1
        if dry:
            self.device_caches[device][0][key] = found = object()
            return found
        begin = work()
        try:
            found = compile_one(self, key, signature, device, *rest)
            shared = found.metadata.shared
            # of a program on sm_90
            if shared > 232_448:
                report.failures.append(f"{self.__name__} {signature}: {shared} bytes of shared memory")
        except Exception as error:
            report.failures.append(f"{self.__name__} {signature}: {type(error).__name__}: {error}"[:2000])
            self.device_caches[device][0][key] = found = object()
        report.seconds += work() - begin
        return found

    def launcher(self: Any, grid: tuple[int, ...]) -> Any:
        report.launches += 1
        report.most_axes = max(report.most_axes, len(grid))
        if not all(0 < count < limit for count, limit in zip(grid, (1 << 31, 1 << 16, 1 << 16), strict=False)):
            report.failures.append(f"{self.__name__}: a grid of {grid}")
        return lambda *arguments, **options: self.run(*arguments, grid=grid, warmup=True, **options)

    JITFunction._do_compile = compiled
    JITFunction.__getitem__ = launcher


def on_cpu(value: Any) -> Any:
    import torch

    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(on_cpu(one) for one in value)
    if isinstance(value, torch.device):
        return torch.device(CPU) if value.type == "cuda" else value
    return CPU if isinstance(value, str) and value.split(":")[0] == "cuda" else value


class Stand:
    """For a stream, an event or a graph."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Stand:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return False

    def elapsed_time(self, other: Any) -> float:
        return 1.0

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


@contextmanager
def pretended() -> Iterator[None]:
    """torch takes "cuda" for the CPU; blockzo's kernels for GPUs serve it."""
    import torch
    from torch.overrides import TorchFunctionMode

    from blockzo.ops.backends import choice
    from blockzo.ops.backends.gpu import cuda, kernels

    class OnCpu(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            options = {name: on_cpu(value) for name, value in (kwargs or {}).items() if name != "pin_memory"}
            if func is torch.Tensor.cuda:
                return args[0].clone()
            if func is torch.Tensor.pin_memory or func is torch.Tensor.record_stream:
                return args[0]
            return func(*on_cpu(tuple(args)), **options)

    class Generator(torch.Generator):
        def __new__(cls, device: Any = CPU) -> Any:
            return super().__new__(cls, on_cpu(device))

    stands: dict[str, Any] = {
        **dict.fromkeys(("Stream", "Event", "CUDAGraph", "graph", "stream", "device", "current_stream"), Stand),
        **dict.fromkeys(
            ("synchronize", "empty_cache", "reset_peak_memory_stats", "set_sync_debug_mode", "_sleep"), Stand
        ),
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda *_: "a GPU that only compiles",
        "get_device_capability": lambda *_: (9, 0),
        "max_memory_allocated": lambda *_: 1,
        "get_sync_debug_mode": lambda: "default",
        "is_current_stream_capturing": lambda: False,
        "get_rng_state_all": list,
    }
    with mock.patch.multiple(torch.cuda, **stands), OnCpu():
        with (
            mock.patch.object(torch, "Generator", Generator),
            # what no kernel writes is to be finite
            mock.patch.multiple(torch, empty=torch.zeros, empty_like=torch.zeros_like),
            mock.patch.object(torch.Tensor, "new_empty", torch.Tensor.new_zeros),
            mock.patch.object(torch.nn.Module, "cuda", lambda self, *_: self),
            mock.patch.object(choice, "for_tensor", lambda tensor: kernels),
            mock.patch.object(cuda, "library", lambda: None),
        ):
            yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    report = Report()
    watch_launches(report, given.dry)
    status: Any = 0
    try:
        with pretended():
            sys.argv = given.command
            run = runpy.run_module if given.command[0] == "pytest" else runpy.run_path
            run(given.command[0], run_name="__main__")
    except SystemExit as done:
        status = done.code
    report.save(given.report)
    return int(status or 0)


if __name__ == "__main__":
    sys.exit(main())
