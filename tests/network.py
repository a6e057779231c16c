"""Hosts with addresses of their own on one machine: network namespaces on a bridge, whose cables can be pulled."""

import os
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Self

PREFIX = "10.89.7"  # of the addresses; none of them leaves its namespace


class Network:
    """Hosts by their names; they are gone with the block, and whatever still runs in them has no network any more."""

    def __init__(self, names: Sequence[str]) -> None:
        self.addresses = {name: f"{PREFIX}.{number}" for number, name in enumerate(names, 2)}
        self._namespaces = {name: f"dg{os.getpid()}-{name}" for name in (*names, "bridge")}
        self._made: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._remove()

    def enter(self, name: str) -> list[str]:
        """What a command begins with that is to run on a host."""
        return ["ip", "netns", "exec", self._namespaces[name]]

    def cut_off(self, name: str) -> None:
        """From now on all packets from and to a host vanish: nobody is told that a connection has ended."""
        self._ip("bridge", f"link set {self._cable(name)} down")

    def reconnect(self, name: str) -> None:
        self._ip("bridge", f"link set {self._cable(name)} up")

    def _make(self) -> None:
        self._add("bridge")
        for line in ("link add br0 type bridge", f"addr add {PREFIX}.1/24 dev br0", "link set br0 up"):
            self._ip("bridge", line)
        for name, address in self.addresses.items():
            self._add(name)
            self._ip(name, f"link add eth0 type veth peer name {self._cable(name)} netns {self._namespaces['bridge']}")
            self._ip("bridge", f"link set {self._cable(name)} master br0 up")
            for line in (
                f"addr add {address}/24 dev eth0",
                "link set eth0 up",
                "link set lo up",
                f"route add default via {PREFIX}.1",
            ):
                self._ip(name, line)

    def _add(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", self._namespaces[name]], check=True)
        self._made.append(self._namespaces[name])

    def _remove(self) -> None:
        while self._made:
            subprocess.run(["ip", "netns", "del", self._made.pop()], check=True)

    def _cable(self, name: str) -> str:
        """The end of a host's cable at the bridge."""
        return f"v{self.addresses[name].rpartition('.')[2]}"

    def _ip(self, name: str, line: str) -> None:
        subprocess.run(["ip", "-n", self._namespaces[name], *line.split()], check=True)
