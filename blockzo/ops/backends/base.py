"""What a backend is, and what is known of one before it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Protocol

from torch import Tensor

from blockzo.ops.params import Target
from blockzo.ops.quantized import QuantizedWeight
from blockzo.ops.steps import Step


class Backend(Protocol):
    """The operations on tensors of one kind of device: a module with these functions, or an object with these methods.

    `reference.py` defines all results: to the bit, but for `perturbed_linear`, whose sums may run in another order. What is given
    was checked (`params.targets`, `steps.make_step`): float32, bfloat16 or float16, of any strides, nothing overlapping.
    """

    READS_PACKED: bool
    """Whether every `step` may be a `PackedStep`, whose numbers the kernels read from device memory."""
    LOW_RANK: bool
    """Whether a `step` may have a rank; where not, the reference serves those."""
    PER_WEIGHT: bool
    """Whether a target of `perturb_`, `shift_` and `replay_` may have scales; where not, or where the step has a rank too, the
    reference serves it."""

    def perturb_(self, found: Sequence[Target], step: Step) -> None: ...

    def shift_(self, found: Sequence[Target], step: Step) -> None: ...

    def replay_(self, found: Sequence[Target], steps: Sequence[Step]) -> None: ...

    def perturbed_copy(self, out: Tensor, source: Tensor, start: int, step: Step, stream: int) -> None: ...

    def perturbed_rows(self, out: Tensor, weight: Tensor, rows: Tensor, step: Step, stream: int) -> None: ...

    def perturbed_linear(
        self,
        x: Tensor,
        weight: Tensor | QuantizedWeight,
        bias: Tensor | None,
        start: int,
        step: Step,
        stream: int,
        *,
        moved: str = "auto",
    ) -> Tensor: ...

    def project(self, found: Sequence[Target], step: Step) -> list[float]: ...


FUNCTIONS = tuple(name for name, value in vars(Backend).items() if callable(value) and not name.startswith("_"))
"""What every backend has; one that has no kernel for some of them takes those of `reference.py`."""


class Absent(ImportError):
    """A backend that is not installed here, or for another machine; an ImportError of another kind is damage."""


def _one_way() -> Iterator[str]:
    yield ""


def _no_parts() -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Entry:
    """A backend's line in the registry.

    Attributes:
        name: what BLOCKZO_BACKEND and `blockzo env` call it.
        what: its kernels, in words.
        devices: types of `torch.device` whose tensors it serves; none: all, where no other backend does.
        load: imports it; an ImportError says why it cannot.
        advice: what to do where it cannot be loaded.
        required_by: environment variable that makes its absence an error.
        switches: environment variable -> what it does.
        experimental: why it is; "" where it is not.
        extension: compiled module that it needs. `blockzo env` tries it in another process: a damaged one may kill its own.
        variants: ways in which it can run here, each in force while it is yielded; the self-test walks all of them.
        parts: optional libraries -> "loads", or why they are not there.
    """

    name: str
    what: str
    devices: tuple[str, ...]
    load: Callable[[], Backend]
    advice: str = ""
    required_by: str = ""
    switches: Mapping[str, str] = field(default_factory=dict)
    experimental: str = ""
    extension: str = ""
    variants: Callable[[], Iterator[str]] = _one_way
    parts: Callable[[], dict[str, str]] = _no_parts

    def open(self) -> Backend:
        """The backend, loaded.

        Raises:
            Absent: it is not installed.
            ImportError: it is, and cannot be loaded.
            TypeError: it lacks an operation.
        """
        if self.extension and find_spec(self.extension) is None:
            raise Absent(f"{self.extension} is not installed")
        try:
            found = self.load()
        except ModuleNotFoundError as error:
            raise Absent(str(error)) from error
        lacks = [name for name in FUNCTIONS if not callable(getattr(found, name, None))]
        if lacks:
            raise TypeError(
                f"backend {self.name!r} lacks {', '.join(lacks)}; expected all of {', '.join(FUNCTIONS)}: take those without a "
                "kernel from blockzo.ops.backends.reference"
            )
        return found
