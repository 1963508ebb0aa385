"""The facts about this machine: what is installed, what there is to compute with; `mcbeit/doctor.py` judges them."""

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container, cgroup v2
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


@dataclass(frozen=True)
class CudaDevice:
    name: str
    memory_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """What there is, without judgement. The defaults describe a machine with nothing at all."""

    python: str = ""
    distributions: Mapping[str, str] = field(default_factory=dict)  # canonical name -> version
    requirements: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # whose -> as they wrote them
    import_errors: Mapping[str, str] = field(default_factory=dict)  # module -> what it raised
    cpu: str = "unknown"
    num_cores: float = 1.0  # those this process may use, a container's limit included
    num_threads: int | None = None  # of torch
    bfloat16: tuple[str, ...] = ()  # the CPU's instruction sets for it
    cuda_build: str | None = None  # the CUDA version torch was built for
    cuda_problem: str | None = None  # what torch said when it found no GPU
    cuda_devices: tuple[CudaDevice, ...] = ()
    cuda_architectures: tuple[str, ...] = ()  # what torch has kernels for, as "sm_90"
    nvidia_driver: bool = False
    mps: bool = False
    onnx_providers: tuple[str, ...] = ()
    shared_memory_bytes: int | None = None
    disk_free_bytes: int | None = None
    precision: str | None = None  # what precision=auto chooses here


def gather() -> Facts:
    """Look at this machine. Takes some seconds: torch and its neighbours are imported to see that they can be."""
    importable = ("torch", "torchvision", "timm", "onnxruntime")
    distributions = _distributions()
    errors = {name: error for name in importable if name in distributions and (error := _import_error(name))}
    runtime = any(name in distributions for name in ONNXRUNTIMES) and "onnxruntime" not in errors
    facts = Facts(
        python=platform.python_version(),
        distributions=distributions,
        requirements={name: _requirements(name) for name in ("mcbeit", "torchvision", "timm")},
        import_errors=errors,
        cpu=cpu_name(),
        num_cores=num_cores(),
        onnx_providers=tuple(importlib.import_module("onnxruntime").get_available_providers()) if runtime else (),
        nvidia_driver=Path("/proc/driver/nvidia/version").exists(),
        shared_memory_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
    )
    usable = "torch" in distributions and "torch" not in errors
    return replace(facts, **_torch_facts()) if usable else facts


def _torch_facts() -> dict[str, Any]:
    import torch

    from mcbeit.device import choose_device, choose_precision

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        device = choose_device()
    found = [
        torch.cuda.get_device_properties(index)
        for index in range(torch.cuda.device_count() if device.type == "cuda" else 0)
    ]
    return {
        "num_threads": torch.get_num_threads(),
        "bfloat16": tuple(sorted(k for k, has in torch.cpu.get_capabilities().items() if "bf16" in k and has)),
        "cuda_build": torch.version.cuda,
        "cuda_problem": " ".join(str(warning.message) for warning in caught) or None,
        "cuda_devices": tuple(CudaDevice(gpu.name, gpu.total_memory, (gpu.major, gpu.minor)) for gpu in found),
        "cuda_architectures": tuple(torch.cuda.get_arch_list()),
        "precision": f"{choose_precision('auto', device).name} on {device}",
        "mps": torch.backends.mps.is_available(),
    }


def _distributions() -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        if name := distribution.metadata["Name"]:  # None: what an interrupted pip leaves behind
            found.setdefault(canonicalize_name(name), distribution.version)
    return found


def _requirements(name: str) -> tuple[str, ...]:
    try:
        return tuple(importlib.metadata.requires(name) or ())
    except importlib.metadata.PackageNotFoundError:
        return ()


def _import_error(module: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except Exception as error:  # whatever it is, it is the finding
        return f"{type(error).__name__}: {error}"
    return None


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    named = re.search(r"^model name\s*: (.+)$", text, flags=re.MULTILINE)
    return named[1] if named else platform.processor() or platform.machine()


def num_cores() -> float:
    """The cores of this process: its affinity, or the quota of its container if that is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cores_of_quota(QUOTA.read_text(encoding="utf-8")) if QUOTA.exists() else float("inf")
    return min(float(allowed), limit)


def cores_of_quota(cpu_max: str) -> float:
    """Read cgroup v2's cpu.max, "quota period" in microseconds; "max" is no limit."""
    quota, period = cpu_max.split()
    return float("inf") if quota == "max" else int(quota) / int(period)
