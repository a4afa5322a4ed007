"""Builds `blockzo._native` with any C++17 compiler and pybind11; without a compiler the install is pure Python. Where it is
asked for, also `blockzo/_cuda.so`, a plain C library that needs no driver to load.

Environment: CXX, CXXFLAGS, LDFLAGS as usual; BLOCKZO_REQUIRE_NATIVE=1 turns a failed build into a failed install. BLOCKZO_CUDA=1
builds the CUDA library, whose failure, or no nvcc, is then that of the install; NVCC is the compiler; BLOCKZO_CUDA_ARCHS,
"80 90 100" by default.
What happened is written to `blockzo/_build.json` (`blockzo env` shows it), as pip hides the output of good builds.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NAME = "blockzo._native"
# Instruction sets are chosen at run time: no -m flags, or a wheel built on a new CPU would crash an old one.
# Without -ffp-contract=off the compiler fuses multiply and add, and the noise changes its bits.
FLAGS = [
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-fPIC",
    "-Wall",
    "-Wno-psabi",
]


def sources() -> list[str]:
    found = [*sorted((ROOT / "csrc" / "cpu").glob("*.cpp")), ROOT / "csrc" / "bindings.cpp"]
    return [path.relative_to(ROOT).as_posix() for path in found if path.is_file()]


class NativeError(Exception):
    """Why there is no native extension."""


def compiler() -> list[str]:
    """The C++ compiler as a command; CXX is final where it is set."""
    given = os.environ.get("CXX")
    candidates = [given] if given else [sysconfig.get_config_var("CXX") or "", "c++", "g++", "clang++"]
    for candidate in candidates:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise NativeError(f"no C++ compiler found (tried {', '.join(c for c in candidates if c)})")


def run(command: list[str]) -> str:
    result = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if result.returncode:
        raise NativeError(f"`{shlex.join(command)}` ended with status {result.returncode}\n{result.stdout[-4000:]}")
    return result.stdout


def tell(text: str) -> None:
    """A line of pip's log, which `pip install -v` shows."""
    print(f"blockzo: {text}", flush=True)


def nvcc() -> str | None:
    """The CUDA compiler, where there is one."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    return shutil.which(os.environ.get("NVCC") or "nvcc") or (str(home) if home.is_file() else None)


def cuda_command(compiler: str, target: Path) -> list[str]:
    """Code for every architecture, and PTX of the last for those to come; the runtime inside, so that any driver that is new
    enough serves.
    """
    archs = os.environ.get("BLOCKZO_CUDA_ARCHS", "80 90 100").split()
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    options = ["-O3", "-std=c++17", "-fmad=false", "-shared", "-cudart=static", "--threads=0"]
    hidden = ["-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{ROOT / 'csrc' / 'include'}"]
    files = [str(path) for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
    return [compiler, *options, *hidden, *codes, *files, "-o", str(target)]


def shared_flags() -> list[str]:
    return ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]


def thread_flags(cxx: list[str]) -> list[str]:
    """-fopenmp where the compiler can compile and link it, else plain threads."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.cpp")
        probe.write_text("#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n")
        try:
            run([*cxx, "-fPIC", "-fopenmp", *shared_flags(), str(probe), "-o", str(Path(folder, "probe.so"))])
        except NativeError:
            return ["-pthread"]
    return ["-fopenmp"]


def ninja_escape(text: str) -> str:
    return text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def compile_with_ninja(ninja: str, folder: Path, command: list[str], pairs: list[tuple[str, str]]) -> None:
    """Recompiles only what changed, headers included."""
    lines = [
        f"builddir = {ninja_escape(str(folder))}",
        "rule cxx",
        f"  command = {shlex.join(command).replace('$', '$$')} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    lines += [f"build {ninja_escape(target)}: cxx {ninja_escape(source)}" for source, target in pairs]
    file = folder / "build.ninja"
    file.write_text("\n".join(lines) + "\n")
    run([ninja, "-f", str(file), f"-j{max(2, os.cpu_count() or 1)}"])


class BuildNative(build_ext):
    """Every source on its own, side by side; the result is linked to a new file, never over one that may be in use."""

    def run(self) -> None:
        self.report: dict[str, object] = {"native": False, "reason": None}
        # setuptools clears `inplace` while it builds, and a failure leaves it so
        self.in_place = bool(self.inplace)
        folders = [Path(self.build_lib, "blockzo"), *([ROOT / "blockzo"] if self.in_place else [])]
        stale_files = [path for folder in folders for name in ("_native*.so", "_cuda.so") for path in folder.glob(name)]
        for stale in stale_files:
            stale.unlink()
        try:
            super().run()
        except NativeError as error:
            if os.environ.get("BLOCKZO_REQUIRE_NATIVE", "0") not in ("", "0"):
                raise SystemExit(failure(error)) from None
            self.report["reason"] = str(error)
            print(warning(error), file=sys.stderr, flush=True)
        self.build_cuda(folders)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "_build.json").write_text(json.dumps(self.report, indent=1) + "\n")

    def build_cuda(self, folders: list[Path]) -> None:
        """Only when asked: a machine with nvcc need not have a GPU, and Triton serves one without this library."""
        self.report["cuda"] = False
        compiler = nvcc()
        if os.environ.get("BLOCKZO_CUDA") != "1":
            if compiler is not None:
                self.report["cuda_reason"] = "not asked for; BLOCKZO_CUDA=1 builds it"
                tell("nvcc found; set BLOCKZO_CUDA=1 to build the CUDA kernels")
            return
        try:
            if compiler is None:
                raise NativeError("BLOCKZO_CUDA is 1 and no nvcc was found; put it on PATH or set NVCC or CUDA_HOME")
            temporary = Path(self.build_temp).resolve()
            temporary.mkdir(parents=True, exist_ok=True)
            built = temporary / "_cuda.so"
            command = cuda_command(compiler, built)
            tell(f"building the CUDA kernels: {shlex.join(command)}")
            tell(run(command) or "the CUDA kernels are built")
        except NativeError as error:
            raise SystemExit(
                f"blockzo: the CUDA kernels could not be built and BLOCKZO_CUDA is 1.\n{error}\n"
            ) from None
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            # a new file, never over one that may be in use
            part = folder / "_cuda.so.part"
            shutil.copyfile(built, part)
            part.replace(folder / "_cuda.so")
        self.report["cuda"] = True

    def build_extension(self, ext: Extension) -> None:
        if os.name != "posix":
            raise NativeError("the kernels are written for g++ and clang++ on Linux and macOS")
        if not any(source.startswith("csrc/cpu/") for source in ext.sources):
            raise NativeError("csrc/cpu holds no sources; the source tree is not complete")
        try:
            import pybind11
        except ImportError as error:
            raise NativeError(f"pybind11 is not installed ({error})") from None
        cxx = compiler()
        identity = run([*cxx, "--version"]).strip().splitlines()
        includes = [
            ROOT / "csrc" / "include",
            ROOT / "csrc" / "cpu",
            pybind11.get_include(),
            sysconfig.get_paths()["include"],
        ]
        threads = thread_flags(cxx)
        flags = [*FLAGS, *threads, *(f"-I{path}" for path in includes), *shlex.split(os.environ.get("CXXFLAGS", ""))]
        # an editable install builds in a new temporary folder every time, and would compile what is compiled
        folder = (ROOT / "build" if self.in_place else Path(self.build_temp).resolve()) / "native"
        folder.mkdir(parents=True, exist_ok=True)
        pairs = [(str(ROOT / source), str(folder / (source.replace("/", "-") + ".o"))) for source in ext.sources]
        ninja = shutil.which("ninja")
        tell(f"building the native kernels, {len(pairs)} files: {shlex.join([*cxx, *flags])}")
        if ninja:
            compile_with_ninja(ninja, folder, [*cxx, *flags], pairs)
        else:
            with ThreadPoolExecutor(max_workers=2) as pool:
                list(pool.map(lambda pair: run([*cxx, *flags, "-c", pair[0], "-o", pair[1]]), pairs))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        link = shlex.split(os.environ.get("LDFLAGS", ""))
        run([*cxx, *shared_flags(), *(o for _, o in pairs), *threads, *link, "-o", str(target.resolve())])
        self.report.update(
            native=True,
            compiler=identity[0] if identity else " ".join(cxx),
            flags=[*FLAGS, *threads],
            ninja=bool(ninja),
        )


class BuildPython(build_py):
    """Starts from an empty folder: modules deleted since the last build must not be shipped."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "blockzo"), ignore_errors=True)
        super().run()


ADVICE = """Install a C++17 compiler (Debian: apt-get install g++, Fedora: dnf install gcc-c++, macOS: xcode-select
--install) or set CXX to one, then: pip install --force-reinstall --no-deps --no-cache-dir blockzo (a checkout: .)."""


def failure(error: NativeError) -> str:
    return (
        f"\nblockzo: the native kernels could not be built and BLOCKZO_REQUIRE_NATIVE is set.\n{error}\n{ADVICE}\n"
        "Without BLOCKZO_REQUIRE_NATIVE the install goes on in pure Python, many times slower.\n"
    )


def warning(error: NativeError) -> str:
    bar = "*" * 100
    return (
        f"\n{bar}\nWARNING: blockzo is being installed WITHOUT its native kernels. It works, many times slower.\n"
        f"{error}\n{ADVICE}\n`blockzo env` shows this again.\n{bar}\n"
    )


setup(
    ext_modules=[Extension(NAME, sources(), language="c++", optional=True)],
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
)
