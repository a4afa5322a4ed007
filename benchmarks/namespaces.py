"""Several hosts of one machine: Linux network namespaces, a link from each to a hub, and a proxy in the hub that makes links bad.

No host reaches another but through the hub's proxy: every link is a network of its own and nothing is forwarded. The kernel's
netem is not needed: delay, stalls and resets come from the proxy; a link that is down is an interface that is down, so that
packets vanish and nobody is told. Needs root and iproute2.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NEW_NETWORK = 0x40000000
_NAMES = Path("/run/netns")


def usable() -> str | None:
    """Why namespaces cannot be had here; None where they can."""
    if not hasattr(os, "geteuid") or os.geteuid():
        return "network namespaces are made by root"
    try:
        subprocess.run(["ip", "netns"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces need iproute2 ({error})"
    return None


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _enter(namespace: str) -> None:
    """Moves the calling thread, and those it starts, into a namespace."""
    with open(_NAMES / namespace, "rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


def _remove(namespace: str, seconds: float = 10) -> None:
    """Ends what runs in a namespace, waits until it is gone, and takes the namespace away."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = _ip("netns", "pids", namespace).split()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if not found:
            break
        time.sleep(0.05)
    _ip("netns", "del", namespace)


def remove_leftovers() -> None:
    """Of earlier networks whose maker was killed."""
    for name in sorted(path.name for path in _NAMES.glob("bz*-*")) if _NAMES.is_dir() else ():
        found = re.fullmatch(r"bz(\d+)-\w+", name)
        if found and not _lives(int(found[1])):
            _remove(name)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@dataclass
class Weather:
    """How a link's connections behave.

    Attributes: `delay`, seconds each way; `stall`, chance that a piece of data waits, for `stalled` seconds at most, as after a
    loss; `reset_every`, mean seconds between resets of a connection of the link, drawn anew each time; 0: never.
    """

    delay: float = 0.0
    stall: float = 0.0
    stalled: float = 0.0
    reset_every: float = 0.0


class Host:
    """A namespace with one link to the hub. `address` is its own, `gateway` the hub's on that link: where the proxy listens.

    Attributes: `up`, `down`: bytes that the proxy carried from and to it; `resets`, connections that were reset.
    """

    def __init__(self, network: Network, number: int, name: str) -> None:
        self.network, self.number, self.name = network, number, name
        self.namespace = f"{network.prefix}{name}"
        self.address, self.gateway = f"10.77.{number}.2", f"10.77.{number}.1"
        self.commands: list[tuple[list[str], dict[str, str], Path]] = []
        self.weather = Weather()
        self.up = self.down = self.resets = 0
        self._begun: list[subprocess.Popen[bytes]] = []

    def connect(self) -> None:
        """Makes the namespace and its link."""
        hub, here = self.network.hub, self.namespace
        _ip("netns", "add", here)
        _ip("-n", hub, "link", "add", "name", self.name, "type", "veth", "peer", "name", "eth0", "netns", here)
        _ip("-n", hub, "addr", "add", f"{self.gateway}/24", "dev", self.name)
        _ip("-n", here, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for where, device in ((hub, self.name), (here, "eth0"), (here, "lo")):
            _ip("-n", where, "link", "set", device, "up")

    def link(self, up: bool) -> None:
        """Packets vanish while the link is down; neither end of a connection hears of it."""
        _ip("-n", self.network.hub, "link", "set", self.name, "up" if up else "down")

    def inside(self, *command: str) -> list[str]:
        """A command that runs on this host; its process becomes the command itself."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def pids(self) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self.namespace).split()]

    def boot(self) -> None:
        """Starts `commands` (arguments, environment, file for the output)."""
        for command, environment, output in self.commands:
            with open(output, "ab") as file:
                self._begun.append(
                    subprocess.Popen(
                        self.inside(*command),
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=file,
                        start_new_session=True,
                    )
                )

    def die(self) -> int:
        """As if its power failed: no packet tells of it, every process is killed, and the kernel forgets all connections.

        Returns how many processes it had. `connect` and `boot` bring it back.
        """
        count = len(self.pids())
        # the kernel clears a namespace some time after it was taken away, and its links with it
        _ip("-n", self.network.hub, "link", "del", self.name)
        _remove(self.namespace)
        for process in self._begun:
            process.wait()
        self._begun.clear()
        return count


class Network:
    """Hosts and the hub between them; a context that takes everything away at its end.

    Args:
        names: of the hosts; letters and digits, seven at most. All reach port `port` of the first one, at their own gateway.
    """

    def __init__(self, names: Sequence[str], port: int) -> None:
        self.prefix = f"bz{os.getpid()}-"
        self.hub = f"{self.prefix}hub"
        self.port = port
        self.hosts = {name: Host(self, number, name) for number, name in enumerate(names)}
        self.server = self.hosts[names[0]]
        self._proxy: _Proxy | None = None

    def __enter__(self) -> Network:
        remove_leftovers()
        try:
            _ip("netns", "add", self.hub)
            _ip("-n", self.hub, "link", "set", "lo", "up")
            for host in self.hosts.values():
                host.connect()
            self._proxy = _Proxy(self)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._proxy is not None:
            self._proxy.close()
        for host in self.hosts.values():
            if (_NAMES / host.namespace).exists():
                _remove(host.namespace)
            for process in host._begun:
                process.wait()
        if (_NAMES / self.hub).exists():
            _remove(self.hub)

    def weather(self, given: Weather) -> None:
        """Of all links to the server."""
        for host in self.hosts.values():
            host.weather = given

    def reset(self, name: str) -> None:
        """Resets one connection of a host, if it has any."""
        assert self._proxy is not None
        self._proxy.reset(self.hosts[name])


class _Proxy:
    """Carries connections from every gateway to the server, from a thread that lives in the hub."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._loop = asyncio.new_event_loop()
        self._open: dict[Host, list[list[asyncio.StreamWriter]]] = {host: [] for host in network.hosts.values()}
        self._chance = random.Random(0)
        self._stop = asyncio.Event()
        self._ready: threading.Event = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            _enter(self.network.hub)
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        tasks = []
        for host in self.network.hosts.values():
            if host is self.network.server:
                continue

            async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: Host = host) -> None:
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await self._carry(host, reader, writer)

            await asyncio.start_server(accepted, host.gateway, self.network.port)
            tasks.append(asyncio.ensure_future(self._reset_now_and_then(host)))
        self._ready.set()
        await self._stop.wait()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _carry(self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.wait_for(
                asyncio.open_connection(self.network.server.address, self.network.port), 60
            )
        except (OSError, TimeoutError, asyncio.TimeoutError):
            _abort(writer)
            return
        both = [writer, far_writer]
        self._open[host].append(both)
        tasks = [
            asyncio.ensure_future(one)
            for one in (*self._pass(host, reader, far_writer, True), *self._pass(host, far_reader, writer, False))
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if any(task.exception() for task in done):
                for end in both:
                    _abort(end)
        finally:
            for task in tasks:
                task.cancel()
            self._open[host].remove(both)
            for end in both:
                end.close()

    def _pass(
        self, host: Host, source: asyncio.StreamReader, sink: asyncio.StreamWriter, up: bool
    ) -> tuple[Coroutine[Any, Any, None], Coroutine[Any, Any, None]]:
        """One direction. Every piece waits for the delay; pieces stay in order, and many are under way at a time."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)

        async def take() -> None:
            last = 0.0
            while True:
                data = await source.read(1 << 16)
                weather = host.weather
                stall = self._chance.uniform(0, weather.stalled) if self._chance.random() < weather.stall else 0.0
                last = max(last, self._loop.time() + weather.delay + stall)
                if up:
                    host.up += len(data)
                else:
                    host.down += len(data)
                await waiting.put((last, data))
                if not data:
                    return

        async def hand_on() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(due - self._loop.time())
                if not data:
                    if sink.can_write_eof():
                        sink.write_eof()
                    return
                sink.write(data)
                await sink.drain()

        return take(), hand_on()

    async def _reset_now_and_then(self, host: Host) -> None:
        while True:
            every = host.weather.reset_every
            await asyncio.sleep(self._chance.expovariate(1 / every) if every else 1.0)
            if every and host.weather.reset_every:
                self._reset_one(host)

    def _reset_one(self, host: Host) -> None:
        if self._open[host]:
            host.resets += 1
            for end in self._chance.choice(self._open[host]):
                _abort(end)

    def reset(self, host: Host) -> None:
        self._loop.call_soon_threadsafe(self._reset_one, host)

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)


def _abort(end: asyncio.StreamWriter) -> None:
    """Closes with a reset instead of a farewell."""
    found = end.get_extra_info("socket")
    if found is not None and found.fileno() >= 0:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.transport.abort()


def environment_of(base: Mapping[str, str], folder: Path, sockets: Path) -> dict[str, str]:
    """Folders of a host's own, for what processes of one machine would share.

    Args:
        sockets: for Unix sockets, whose paths must be short.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    sockets.mkdir(parents=True, exist_ok=True, mode=0o700)
    return {**base, "BLOCKZO_STATE": os.fspath(folder / "state"), "BLOCKZO_RUNTIME": os.fspath(sockets)}
