"""Times of a GPU's own work, on a stand-in for its clock: the host's work is never among them."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu_timing


class Device:
    """Host and device clocks in milliseconds; the host is ahead while the device sleeps."""

    def __init__(self) -> None:
        self.host = self.device = 0.0

    def host_work(self, time: float) -> None:
        self.host += time

    def queue(self, time: float) -> None:
        self.device = max(self.device, self.host) + time

    def sleep(self, cycles: int) -> None:
        self.queue(cycles / 1e6)

    def synchronize(self) -> None:
        self.host = max(self.host, self.device)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = max(found.device, found.host)
            found.device = self.at

        def query(self) -> bool:
            return found.host >= self.at

        def synchronize(self) -> None:
            found.synchronize()

        def elapsed_time(self, other: Event) -> float:
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", found.synchronize)
    monkeypatch.setattr(torch.cuda, "_sleep", found.sleep)
    return found


def test_host_work_is_left_out(device: Device) -> None:
    def side() -> None:
        device.host_work(7.0)  # longer than the first sleep
        device.queue(0.5)

    times = gpu_timing.timed({"a": side, "b": lambda: device.queue(0.25)}, 3)
    assert times == {"a": pytest.approx([0.5e-3] * 3), "b": pytest.approx([0.25e-3] * 3)}
    # users meet a step that waits with its host work
    assert gpu_timing.timed({"a": side}, 1, waits=True)["a"] == [pytest.approx(7.5e-3)]


def test_a_side_that_waits_is_named(device: Device) -> None:
    def side() -> None:
        device.queue(1.0)
        device.synchronize()

    with pytest.raises(RuntimeError, match="slow: the host takes longer .* is it waiting"):
        gpu_timing.timed({"slow": side}, 1)


def test_weights_are_more_than_a_cache_holds() -> None:
    assert gpu_timing.copies(32 << 20) == 4 and gpu_timing.copies(1 << 30) == 2
    turn = gpu_timing.in_turn([torch.zeros(1), torch.ones(1)])
    assert [float(turn()) for _ in range(3)] == [0.0, 1.0, 0.0]
