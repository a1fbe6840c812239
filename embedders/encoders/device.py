"""The device an encoder runs on: chosen without surprise, named, and measured."""

import platform
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal

from warehouse.errors import TimeloomError

if TYPE_CHECKING:
    import torch

# Either exists where an NVIDIA driver is loaded, whether or not torch can use it.
NVIDIA_MARKS = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"))
PEAK_SECONDS = 0.3
PEAK_SIDES = {"cpu": 1024, "cuda": 8192}


def wanted_device(name: str) -> Literal["cpu", "cuda"]:
    """Where "cpu", "cuda" or "auto" leads on this machine: auto is the GPU wherever the machine has an NVIDIA one."""
    if name == "auto":
        return "cuda" if any(mark.exists() for mark in NVIDIA_MARKS) else "cpu"
    return "cuda" if name == "cuda" else "cpu"


def open_device(kind: Literal["cpu", "cuda"], asked: str, index: int | None = None) -> "torch.device":
    """The torch device; `index` chooses among several GPUs.

    Raises:
        TimeloomError: a GPU was asked for, or the machine has one, and torch cannot use it; no GPU of that index.
    """
    import torch

    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        fault = "the configuration asks for device cuda and there is none" if asked == "cuda" else (
            "this machine has an NVIDIA GPU that torch cannot use"
        )  # fmt: skip
        raise TimeloomError(fault, remedy="install a CUDA build of torch, or ask for the CPU with device: cpu")
    if index is not None and not 0 <= index < torch.cuda.device_count():
        raise TimeloomError(
            f"there is no GPU {index}", remedy=f"this process sees {torch.cuda.device_count()}, counted from 0"
        )
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)


def device_name(device: "torch.device") -> str:
    """The hardware's name: the GPU's, or the processor's with the instructions that torch uses."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def peak_flops(device: "torch.device", precision: str) -> float:
    """FLOP/s of large matrix products in a precision, the best of some: what a model can reach at most here.

    Takes a third of a second, once per process, device, precision and number of threads.
    """
    import torch

    return _peak(device, precision, torch.get_num_threads())


@cache
def _peak(device: "torch.device", precision: str, threads: int) -> float:
    import torch

    side = PEAK_SIDES[device.type]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    begun = perf_counter()
    with torch.inference_mode():
        left @ right
        while perf_counter() - begun < PEAK_SECONDS:
            best = min(best, _seconds(left, right, device))
        return 2 * side**3 / min(best, _seconds(left, right, device))


def _seconds(left: "torch.Tensor", right: "torch.Tensor", device: "torch.device") -> float:
    """Seconds of one product; on a GPU of eight in a row, so that launching them does not count."""
    import torch

    repeats = 8 if device.type == "cuda" else 1
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = perf_counter()
    for _ in range(repeats):
        left @ right
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (perf_counter() - begun) / repeats
