"""Why a group fails, and what follows: what cannot be batched runs alone, what may pass is tried again, all else is raised."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blockzo as bz
from blockzo.perturb import groups
from blockzo.perturb.causes import Cause, cause_of
from blockzo.perturb.grouping import Known
from blockzo.perturb.groups import perturbed_losses
from blockzo.perturb.passes import PathChanged

NOISE = bz.Noise(5, "gaussian")
X = torch.linspace(-1, 1, 12).view(3, 4)


class NoRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


class NoVmap(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...


def wrapped(x: Tensor) -> Tensor:
    """A library that makes an error of its own of torch's."""
    try:
        return x * x.sum().item()
    except RuntimeError:
        raise TypeError("not with this tensor") from None


UNBATCHABLE: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x * x.sum().item(),
    "tolist": lambda x: torch.tensor(x.tolist()),
    "numpy": lambda x: torch.from_numpy(x.numpy() * 2),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x[x.nonzero()[0]],
    "unique": torch.unique,
    "an autograd function without setup_context": NoRule.apply,
    "an autograd function without vmap": NoVmap.apply,
    "no batching rule": lambda x: x * torch.equal(x, x + 1),
    "out": lambda x: torch.add(x, x, out=torch.zeros(3, 4)),
    "written into what all groups share": lambda x: torch.zeros(3, 4).add_(x),
    "copied into what all groups share": lambda x: torch.zeros(3, 4).copy_(x),
    "random numbers": lambda x: x + 0 * torch.rand_like(x),
    "an address": lambda x: x + 0 * (x.data_ptr() % 2),
    "a storage": lambda x: x * len(x.untyped_storage()),
    "a library's own error": wrapped,
}


def losses(model: nn.Module, change: Callable[[Tensor], Any], x: Tensor = X, count: int = 3, **more: Any) -> Tensor:
    given = {"max_group": count, **more}
    return perturbed_losses(
        model, NOISE, range(count), [0.5] * count, lambda: change(model(x)).square().mean(), **given
    )


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 4)


class Watched:
    """The sizes of the groups that ran, and a failure for some of them, made by torch itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[int] = []
        self.fails: Callable[[int], bool] = lambda count: False
        self.make: Callable[[], Any] = lambda: torch.zeros(2) @ torch.zeros(3)
        plain = groups.run_groups

        def run(forward: Any, kept: Any, index: Any, moves: Any, count: int, *rest: Any) -> Any:
            self.seen.append(count)
            if self.fails(count):
                self.make()
            return plain(forward, kept, index, moves, count, *rest)

        monkeypatch.setattr(groups, "run_groups", run)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def caught(x: Tensor) -> Tensor:
    """A library that makes an error of its own of any other."""
    try:
        return x if x.sum() > 0 else -x
    except Exception as error:
        raise ValueError("not with this tensor") from error


@pytest.mark.parametrize("change", [lambda x: x if x.sum() > 0 else -x, caught], ids=["plain", "a library's own error"])
def test_evaluations_that_branch_differently_part(change: Callable[[Tensor], Any], watched: Watched) -> None:
    model = make()
    expected = losses(model, change, max_group=1, count=6)
    watched.seen.clear()
    assert len({float(loss) for loss in expected}) == 6
    found = losses(model, change, count=6)  # a warning would be an error
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert watched.seen[0] == 6 and max(watched.seen[1:]) > 1 and not Known.of(model).alone


@pytest.mark.parametrize("name", UNBATCHABLE)
def test_what_vmap_cannot_run_is_known_by_its_error(name: str, watched: Watched) -> None:
    """It runs alone, for batches of other shapes too, with the results of one evaluation after the other."""
    model, change = make(), UNBATCHABLE[name]
    expected = losses(model, change, max_group=1)
    watched.seen.clear()
    with pytest.warns(UserWarning, match="cannot be evaluated in groups .*one after the other"):
        found = losses(model, change)
    # two more after the first that was stopped: does it change the next?
    assert torch.equal(found, expected) and watched.seen == [3, 1, 1, 1, 1, 1]
    assert Known.of(model).alone[None].shape is None
    watched.seen.clear()
    losses(model, lambda x: change(x[:3]), torch.cat([X, X]))
    assert watched.seen == [1, 1, 1]


def test_an_error_that_the_loss_raises_is_raised(watched: Watched) -> None:
    """Once is enough: it is no matter of groups, and batching stays on."""
    calls: list[int] = []

    def broken_once(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("the disk is full")
        return x

    model = make()
    with pytest.raises(RuntimeError, match="the disk is full"):
        losses(model, broken_once)
    assert not Known.of(model).alone and watched.seen == [3]
    losses(model, broken_once)
    assert watched.seen == [3, 3, 1]  # the group, and one to compare it with


@pytest.mark.parametrize(
    ("bug", "error"),
    [
        (lambda x: x @ torch.zeros(5, 5), RuntimeError),
        (lambda x: x.no_such_thing, AttributeError),
        (lambda x: {}["key"], KeyError),
        (lambda x: x[:, 99], IndexError),
        (lambda x: torch.zeros(2, 2).add_(x), RuntimeError),
    ],
)
def test_what_fails_alone_too_is_raised(bug: Callable[[Tensor], Any], error: type[Exception]) -> None:
    model = make()
    with pytest.raises(error):
        losses(model, bug)
    assert not Known.of(model).alone


def test_a_failure_in_groups_alone_is_tried_again_with_another_batch(watched: Watched) -> None:
    model = make()
    expected, larger = losses(model, torch.sin), losses(model, torch.sin, torch.cat([X, X]))
    watched.fails = lambda count: count > 1
    watched.seen.clear()
    with pytest.warns(
        UserWarning, match="a group of evaluations failed, and alone they run .*for batches of this shape"
    ):
        found = losses(model, torch.sin)
    torch.testing.assert_close(found, expected)
    assert watched.seen == [3, 1, 1, 1, 1, 1] and "size" in Known.of(model).alone[None].cause
    watched.fails = lambda count: False
    watched.seen.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses(model, torch.sin)
        assert watched.seen == [1, 1, 1]  # such a batch failed
        watched.seen.clear()
        assert torch.equal(losses(model, torch.sin, torch.cat([X, X])), larger)
        assert watched.seen == [1, 3] and not Known.of(model).alone
        watched.seen.clear()
        assert torch.equal(losses(model, torch.sin), expected) and watched.seen == [3]


def test_batches_are_told_apart_without_linear_layers(watched: Watched) -> None:
    model = nn.Conv1d(3, 3, 2)
    watched.fails = lambda count: count > 1
    for length in (4, 5):
        with pytest.warns(UserWarning, match="for batches of this shape"):
            losses(model, torch.sin, torch.ones(3, length))
    assert watched.seen == [3, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1]


@pytest.mark.parametrize("max_group", [4, "auto"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_group_that_does_not_fit_is_halved(watched: Watched, error: Exception, max_group: Any) -> None:
    def fail() -> None:
        raise error

    model, watched.make = make(), fail
    watched.fails = lambda count: count > 2
    losses(model, torch.sin, count=4, max_group=max_group)
    assert [count for count in watched.seen if count > 1] == [4, 2, 2] and not Known.of(model).alone
    watched.fails = lambda count: True
    with pytest.raises(type(error)):
        losses(model, torch.sin, count=4, max_group=max_group)


def test_memory_that_is_short_once_does_not_keep_evaluations_apart(watched: Watched) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("no memory")

    model, watched.make = make(), fail
    watched.fails = lambda count: count > 1
    with pytest.warns(UserWarning, match="no memory.* for batches of this shape"):
        losses(model, torch.sin)
    assert watched.seen == [3, 1, 1, 2, 1, 1, 1]
    watched.fails = lambda count: False
    watched.seen.clear()
    losses(model, torch.sin, torch.cat([X, X]))
    assert watched.seen == [1, 2, 1, 1] and not Known.of(model).alone  # one is told apart, a pair, its check, the last


def raised(error: Exception, statement: str = "raise error", module: str = "models") -> Exception:
    try:
        exec(statement, {"error": error, "torch": torch, "__name__": module})
    except Exception as found:
        return found
    raise AssertionError(f"{statement} raised nothing")


def test_causes() -> None:
    def of(text: str = "what?", **more: str) -> Cause:
        return cause_of(raised(RuntimeError(text), **more))

    assert of() is of(statement="assert not error") is Cause.REFUSED
    assert of(module="torch.nn.functional") is of(module="blockzo.perturb.functions") is Cause.UNKNOWN
    assert of(statement="[][1]") is of(statement="torch.zeros(2) @ torch.zeros(3)") is Cause.UNKNOWN
    assert of(module="torch._functorch.apis") is Cause.BATCHING
    assert cause_of(raised(PathChanged("another way"), module="blockzo.perturb.passes")) is Cause.REFUSED
    assert of("CUDA error: an illegal memory access was encountered", module="torch") is Cause.REFUSED
    assert of("CUDA out of memory. Tried to allocate 2 GiB") is Cause.MEMORY
    assert cause_of(RuntimeError("never raised")) is Cause.UNKNOWN
    # a kernel that could not be started
    assert of("Triton Error [CUDA]: invalid argument", module="triton.runtime.jit") is Cause.REFUSED
    assert of("error 9", module="blockzo.ops.backends.gpu.kernels") is of(module="triton.compiler") is Cause.REFUSED
    assert of("Triton Error [CUDA]: out of memory", module="triton.runtime.jit") is Cause.MEMORY
    assert of("Tensor that doesn't have storage", module="blockzo.ops.backends.gpu.tables") is Cause.BATCHING
    assert of(module="tritonlike") is Cause.REFUSED and of(module="blockzo.ops.backends.cpu") is Cause.UNKNOWN
