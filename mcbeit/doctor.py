"""What `mcbeit doctor` says: versions, devices, and what would go wrong, each with what to do.

All of it is a pure function of the `Facts` that `mcbeit/machine.py` gathers.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from mcbeit.machine import ONNXRUNTIMES, Facts

GIB = 1024**3
SHARED_MEMORY_WANTED = 1 * GIB
DISK_WANTED = 5 * GIB


@dataclass(frozen=True)
class Part:
    """Something that may be installed: any one of `names` will do."""

    names: tuple[str, ...]
    needed_for: str
    install: str


FAISSES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cuvs")
PILLOWS = ("pillow", "pillow-simd")
PARTS = (
    Part(("mcbeit",), "everything", "pip install mcbeit"),
    Part(("torch",), "training, finetuning and export", "pip install torch torchvision"),
    Part(("torchvision",), "augmentation and detection", "pip install torch torchvision"),
    Part(("timm",), "backbones and optimisers", "pip install timm"),
    Part(("numpy",), "everything", "pip install numpy"),
    Part(PILLOWS, "reading images", "pip install pillow"),
    Part(("pyarrow",), "reading parquet files", "pip install 'mcbeit[data]'"),
    Part(("tifffile",), "reading TIFF files of N channels", "pip install 'mcbeit[data]'"),
    Part(("scipy",), "corrupting images, and the devkit of ImageNet", "pip install 'mcbeit[robustness]'"),
    Part(("ray",), "training with several workers, and serving", "pip install 'ray[train,serve]'"),
    Part(("onnx",), "exporting a backbone", "pip install onnx"),
    Part(ONNXRUNTIMES, "running an exported backbone", "pip install 'mcbeit[cpu]'"),
    Part(FAISSES, "k-NN, retrieval and the search index", "pip install 'mcbeit[cpu]'"),
    Part(("pycocotools",), "detection, and preparing EmojiCOCO", "pip install 'mcbeit[dense]'"),
)
SAME_MODULE = {"onnxruntime": ONNXRUNTIMES, "faiss": FAISSES, "PIL": PILLOWS}


@dataclass(frozen=True)
class Version:
    """One row of the list of versions; `version` is None for a part that is not installed."""

    name: str
    version: str | None
    needed_for: str = ""
    install: str = ""


@dataclass(frozen=True)
class Finding:
    """Something to know. `error`: it will go wrong; `warning`: it may, or is slow; `info`: it is fine if meant."""

    level: Literal["error", "warning", "info"]
    what: str
    do: str


@dataclass(frozen=True)
class Report:
    """The whole answer."""

    versions: tuple[Version, ...]
    devices: Mapping[str, str]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Is there no error among the findings?"""
        return all(finding.level != "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Plain values, for machines."""
        return {"healthy": self.healthy, **asdict(self)}


def diagnose(facts: Facts) -> Report:
    """Judge the facts; the findings come with the worst first."""
    rules = (doubled_modules, unmet_requirements, broken_imports, gpu_trouble, slow_settings, small_storage)
    findings = [finding for rule in rules for finding in rule(facts)]
    findings.sort(key=lambda finding: ("error", "warning", "info").index(finding.level))
    return Report(tuple(versions(facts)), devices(facts), tuple(findings))


def versions(facts: Facts) -> Iterator[Version]:
    """Python and every part, installed or not."""
    yield Version("python", facts.python)
    for part in PARTS:
        installed = [name for name in part.names if name in facts.distributions]
        for name in installed:
            yield Version(name, facts.distributions[name])
        if not installed:
            yield Version(part.names[0], None, part.needed_for, part.install)


def devices(facts: Facts) -> dict[str, str]:
    """What there is to compute with, one line each."""
    rows = {"cpu": f"{facts.cpu}, {facts.num_cores:g} cores"}
    rows["cpu bfloat16"] = ", ".join(facts.bfloat16) or "none in hardware"
    if facts.num_threads is not None:
        rows["torch threads"] = str(facts.num_threads)
    for index, device in enumerate(facts.cuda_devices):
        major, minor = device.capability
        rows[f"cuda:{index}"] = f"{device.name}, {device.memory_bytes / GIB:.0f} GiB, capability {major}.{minor}"
    if not facts.cuda_devices:
        rows["cuda"] = "none"
    rows["mps"] = "yes" if facts.mps else "none"
    rows["onnxruntime"] = ", ".join(facts.onnx_providers) or "none"
    if facts.shared_memory_bytes is not None:
        rows["shared memory"] = f"{facts.shared_memory_bytes / GIB:.1f} GiB"
    if facts.disk_free_bytes is not None:
        rows["disk"] = f"{facts.disk_free_bytes / GIB:.0f} GiB free here"
    if facts.precision is not None:
        rows["precision=auto"] = facts.precision
    return rows


def doubled_modules(facts: Facts) -> Iterator[Finding]:
    """Two distributions that install the same module overwrite each other's files; pip says nothing."""
    for module, names in SAME_MODULE.items():
        installed = [name for name in names if name in facts.distributions]
        if len(installed) > 1:
            keep = _preferred(installed, gpu=bool(facts.cuda_devices))
            yield Finding(
                "error",
                f"{' and '.join(installed)} are both installed and overwrite each other's '{module}' module",
                f"pip uninstall -y {' '.join(installed)} && pip install {keep}",
            )


def _preferred(installed: list[str], *, gpu: bool) -> str:
    return next((name for name in installed if ("-gpu" in name) == gpu), installed[0])


def unmet_requirements(facts: Facts) -> Iterator[Finding]:
    """A distribution that is missing or of the wrong version; of optional ones only those installed are judged."""
    for owner, lines in facts.requirements.items():
        for requirement in _parsed(lines):
            optional = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
            found = facts.distributions.get(canonicalize_name(requirement.name))
            wanted = f"{requirement.name}{requirement.specifier}"
            if found is None and not optional:
                yield Finding("error", f"{owner} needs {wanted}, which is not installed", f"pip install '{wanted}'")
            elif found is not None and not requirement.specifier.contains(found, prereleases=True):
                what = f"{owner} needs {wanted}, found {found}"
                yield Finding("warning" if optional else "error", what, f"pip install '{wanted}'")


def _parsed(lines: tuple[str, ...]) -> Iterator[Requirement]:
    for line in lines:
        try:
            yield Requirement(line)
        except InvalidRequirement:  # somebody else's metadata: nothing the reader could do about it
            continue


def broken_imports(facts: Facts) -> Iterator[Finding]:
    """A part that is installed and cannot be imported: most often two that were not built for each other."""
    for module, error in facts.import_errors.items():
        names = "torch torchvision" if module in ("torch", "torchvision") else module
        yield Finding("error", f"import {module} fails: {error}", f"pip install --force-reinstall {names}")


def gpu_trouble(facts: Facts) -> Iterator[Finding]:
    """A GPU that is not used, or a GPU build with no GPU."""
    if "torch" not in facts.distributions or "torch" in facts.import_errors:
        return
    said = f" ({facts.cuda_problem})" if facts.cuda_problem else ""
    if facts.nvidia_driver and facts.cuda_build is None:
        yield Finding(
            "warning", "there is an NVIDIA driver, but this torch is built without CUDA", "install a CUDA torch"
        )
    elif facts.nvidia_driver and not facts.cuda_devices:
        what = f"there is an NVIDIA driver, but torch for CUDA {facts.cuda_build} sees no GPU{said}"
        yield Finding(
            "warning", what, "see nvidia-smi and CUDA_VISIBLE_DEVICES; an old driver needs an older CUDA build"
        )
    elif facts.cuda_build and not facts.cuda_devices:
        what = f"torch is built for CUDA {facts.cuda_build} and there is no GPU: it runs on the CPU"
        yield Finding("info", what, "nothing; a CPU build of torch would save some GiB of disk")
    for index, device in enumerate(facts.cuda_devices):
        if not has_kernels(device.capability, facts.cuda_architectures):
            what = f"torch has no kernels for cuda:{index} ({device.name}): it has {' '.join(facts.cuda_architectures)}"
            yield Finding("error", what, "install a torch build that lists this GPU's capability")
    if facts.cuda_devices and facts.onnx_providers and "CUDAExecutionProvider" not in facts.onnx_providers:
        what = "there is a GPU, but this onnxruntime cannot use it"
        yield Finding("info", what, "pip uninstall -y onnxruntime faiss-cpu && pip install 'mcbeit[gpu]'")


def has_kernels(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Kernels run on their own major capability and any later minor one; PTX ("compute_90") on all that is later."""
    major, minor = capability
    for kind, digits in re.findall(r"(sm|compute)_(\d+)", " ".join(architectures)):
        built = int(digits[:-1]), int(digits[-1])
        if built <= (major, minor) and (kind == "compute" or built[0] == major):
            return True
    return not any(name.startswith("sm_") for name in architectures)  # ROCm names others: no judgement


def slow_settings(facts: Facts) -> Iterator[Finding]:
    """More threads than cores fight each other; fewer leave cores idle."""
    threads, cores = facts.num_threads, facts.num_cores
    if threads is not None and threads > max(cores, 1):
        what = f"torch starts {threads} threads and this process may use {cores:g} cores"
        yield Finding("warning", what, f"export OMP_NUM_THREADS={max(int(cores), 1)}")
    elif threads == 1 and cores >= 4 and not facts.cuda_devices:
        what = f"torch uses 1 thread of {cores:g} cores"
        yield Finding("info", what, "unset OMP_NUM_THREADS, unless it is meant")


def small_storage(facts: Facts) -> Iterator[Finding]:
    """Data loader workers pass batches through shared memory; runs and datasets take disk."""
    shared, disk = facts.shared_memory_bytes, facts.disk_free_bytes
    if shared is not None and shared < SHARED_MEMORY_WANTED:
        what = f"/dev/shm has {shared / 1024**2:.0f} MiB: data loader workers may die with a bus error"
        yield Finding("warning", what, "docker run --shm-size=8g, or train with no loader workers")
    if disk is not None and disk < DISK_WANTED:
        what = f"{disk / GIB:.1f} GiB of disk are free here: too little for a dataset and a run"
        yield Finding("warning", what, "free some space, or work in a folder on another disk")
