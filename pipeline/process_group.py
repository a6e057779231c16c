"""How the workers of a training find each other: each at the address by which Ray knows its node.

Left to itself, Gloo takes the address that the host's own name stands for. On Debian and its kin that is 127.0.1.1: the
workers of other hosts would look for it on themselves.
"""

import fcntl
import logging
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray.train.torch import TorchConfig, get_device
from ray.train.torch.config import _TorchBackend

log = logging.getLogger(__name__)

INTERFACE = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # of Linux: the IPv4 address of an interface


@dataclass
class ProcessGroupConfig(TorchConfig):
    """NCCL where every worker's PyTorch finds its GPU, and Gloo elsewhere."""

    @property
    def backend_cls(self) -> type["_Backend"]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:  # Any: Ray's, one not public, one too general
        found = worker_group.execute(_be_reachable)
        super().on_start(worker_group, replace(backend_config, backend="nccl" if all(found) else "gloo"))


def _be_reachable() -> bool:
    """Tell Gloo where to listen, in a worker's process, unless the environment does; whether this worker has a GPU."""
    address: str = ray.util.get_node_ip_address()
    if (interface := interface_of(address)) is not None:
        os.environ.setdefault(INTERFACE, interface)
    has_gpu = device_of_worker() != "cpu"
    if ray.get_gpu_ids() and not has_gpu:
        log.warning("%s has a GPU, as Ray knows it, but PyTorch finds none there: training on its cores", address)
    return has_gpu


def device_of_worker() -> str:
    """What the worker in this process computes on, as torch names it.

    Ray alone would name the first GPU to a worker that it gives none, and to a PyTorch that was built for CPUs.
    """
    return str(get_device()) if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu"


def interface_of(address: str) -> str | None:
    """The name of this host's interface with that IPv4 address; None where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                found = fcntl.ioctl(asked, SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None
