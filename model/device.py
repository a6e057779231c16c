"""What a denoiser computes with: the device, the precision, and the threads; and whether memory ran out."""

import functools
from enum import StrEnum
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController, threadpool_limits
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class Precision(StrEnum):
    """The type in which the network computes the noise. It is subtracted in float32 in any case."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def use_threads(count: int) -> None:
    """How many threads torch may use on the CPU for what the calling thread asks of it.

    NumPy's products get by with one in the whole process: the threads of its BLAS spin while they wait, and beside the
    network on two cores they halve the speed of training, and make a photo of 512² take 1.7 times as long.
    """
    torch.set_num_threads(count)
    threadpool_limits(1, user_api="blas")


@functools.cache
def thread_pools() -> ThreadpoolController:
    """Those of the libraries that this process has loaded, such as NumPy's BLAS; looked for once."""
    return ThreadpoolController()


def count_gpus() -> int:
    """GPUs that a denoiser can use here."""
    return torch.cuda.device_count()


def find_device(name: str) -> torch.device:
    """The device as torch names it, such as "cpu" or "cuda:1"; "auto" is a GPU where there is one.

    Raises:
        ValueError: no device is called so, or there is none here.
    """
    has_gpu = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if has_gpu else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}: expected auto, cpu, cuda or the like") from error
    if device.type == "cuda" and not has_gpu:
        raise ValueError(f"device is {name!r}, but torch finds no GPU here: install its CUDA build, or use cpu")
    return device


def move(network: Network, device: torch.device | str) -> Network:
    """Have a network compute on a device: its kernels with channels last, as its photos are. Returns the same one."""
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's overloads lack it
    return network


def fastest_precision(device: torch.device) -> Precision:
    """The type that the hardware computes fastest: bfloat16 is only worth it where it has instructions of its own."""
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision.BFLOAT16 if has_bfloat16 else Precision.FLOAT16
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    has_bfloat16 = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return Precision.BFLOAT16 if has_bfloat16 else Precision.FLOAT32


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: torch has a class for it on a GPU, and only a message on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory"))
