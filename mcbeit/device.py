"""What this process computes on, and in which number format."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, NamedTuple

import torch
from pydantic import Field

from mcbeit.config import Config

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]


class ComputeConfig(Config):
    """How it is computed. None of this changes what is computed, beyond rounding."""

    precision: PrecisionName = "auto"
    compile: bool = False  # torch.compile: slow to start, faster afterwards
    gradient_checkpointing: bool = False  # less memory, about a third more work
    shard: Literal["none", "fsdp"] = "none"  # fsdp: each worker keeps a part of every parameter, for ViT-L and beyond
    threads: int | None = Field(None, ge=1)  # of this process on the CPU; default: torch's choice


class Precision(NamedTuple):
    """How products are computed: under autocast to `dtype`, with loss scaling where the format needs it."""

    name: str
    dtype: torch.dtype

    @property
    def scales_loss(self) -> bool:
        """fp16 underflows without it."""
        return self.dtype == torch.float16

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """The context for forward passes; does nothing for fp32."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)


PRECISIONS = {
    "fp32": Precision("fp32", torch.float32),
    "bf16": Precision("bf16", torch.bfloat16),
    "fp16": Precision("fp16", torch.float16),
}


@contextmanager
def thread_limit(threads: int | None) -> Iterator[None]:
    """Use so many threads on the CPU in here; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device() -> torch.device:
    """The current CUDA device, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """What a person calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def choose_precision(name: PrecisionName, device: torch.device) -> Precision:
    """`auto` is bf16 where the hardware multiplies in it, fp16 with loss scaling on older CUDA GPUs, else fp32.

    A CPU without AVX512-BF16 or AMX only imitates bf16: measured here, five times slower than fp32.
    """
    if name != "auto":
        return PRECISIONS[name]
    if device.type == "cuda":
        return PRECISIONS["bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"]
    if device.type == "cpu" and has_bf16_products():
        return PRECISIONS["bf16"]
    return PRECISIONS["fp32"]


def has_bf16_products() -> bool:
    """Whether this CPU has instructions for bf16 products."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """The best FLOP/s of square matrix products seen within about `seconds`: what a step's speed is compared with."""
    size = 8192 if device.type == "cuda" else 2048
    generator = torch.Generator(device).manual_seed(0)  # the global one belongs to the training
    left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    best, start = float("inf"), time.perf_counter()
    torch.mm(left, right)
    while time.perf_counter() - start < seconds or best == float("inf"):
        synchronise(device)
        before = time.perf_counter()
        torch.mm(left, right)
        synchronise(device)
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was told; only for timing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int | None:
    """The most bytes the device has held for tensors so far; None where it does not count."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
