"""mcbeit.doctor and `mcbeit doctor`: facts in, versions, devices and findings out."""

import json
import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mcbeit import machine
from mcbeit.cli.doctor import as_text, tables
from mcbeit.cli.main import cli
from mcbeit.doctor import GIB, PARTS, Finding, diagnose, has_kernels
from mcbeit.machine import CudaDevice, Facts, cores_of_quota, gather, num_cores

LAPTOP = Facts(
    python="3.11.9",
    distributions={
        "mcbeit": "0.1.0",
        "torch": "2.14.1+cpu",
        "torchvision": "0.29.1",
        "timm": "1.0.31",
        "numpy": "2.4.6",
        "pillow": "13.0.0",
        "onnxruntime": "1.32.0",
        "faiss-cpu": "1.15.1",
    },
    requirements={
        "mcbeit": (
            "torch>=2.14",
            "timm>=1.0.22",
            'onnxruntime>=1.20; extra == "cpu"',
            'faiss-gpu>=1.7; extra == "gpu"',
        ),
        "torchvision": ("torch (>=2.14.0)", "scipy ; extra == 'scipy'"),
    },
    cpu="A good CPU",
    num_cores=8.0,
    num_threads=8,
    bfloat16=("amx_bf16", "avx512_bf16"),
    onnx_providers=("CPUExecutionProvider",),
    shared_memory_bytes=16 * GIB,
    disk_free_bytes=100 * GIB,
    precision="bf16 on cpu",
)
H200 = CudaDevice("NVIDIA H200", 139 * GIB, (9, 0))
SERVER = replace(
    LAPTOP,
    cuda_build="13.0",
    cuda_devices=(H200,),
    cuda_architectures=("sm_80", "sm_90"),
    nvidia_driver=True,
    onnx_providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
)


def with_distributions(facts: Facts, **versions: str) -> Facts:
    """The facts with more installed, or other versions; `onnxruntime_gpu` is onnxruntime-gpu."""
    return replace(
        facts, distributions={**facts.distributions, **{k.replace("_", "-"): v for k, v in versions.items()}}
    )


def without(facts: Facts, *names: str) -> Facts:
    return replace(facts, distributions={k: v for k, v in facts.distributions.items() if k not in names})


def only_finding(facts: Facts) -> Finding:
    (finding,) = diagnose(facts).findings
    return finding


@pytest.mark.parametrize("facts", [LAPTOP, SERVER])
def test_diagnose__healthy(facts: Facts) -> None:
    report = diagnose(facts)
    assert report.findings == ()
    assert report.healthy


# Versions and devices


def test_versions__installed_and_not() -> None:
    rows = {row.name: row for row in diagnose(LAPTOP).versions}
    assert rows["python"].version == "3.11.9"
    assert rows["torch"].version == "2.14.1+cpu"
    assert rows["pycocotools"].version is None
    assert rows["pycocotools"].needed_for == "detection, and preparing EmojiCOCO"
    assert rows["pycocotools"].install == "pip install 'mcbeit[dense]'"
    assert "faiss-gpu" not in rows  # faiss-cpu is there, and one is enough


def test_versions__both_of_a_clash_are_listed() -> None:
    rows = {row.name: row.version for row in diagnose(with_distributions(LAPTOP, onnxruntime_gpu="1.31.0")).versions}
    assert (rows["onnxruntime"], rows["onnxruntime-gpu"]) == ("1.32.0", "1.31.0")


def test_versions__the_named_extras_exist() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for part in PARTS:
        for extra in re.findall(r"mcbeit\[(\w+)\]", part.install):
            assert any(line.startswith(part.names) for line in extras[extra])


def test_devices__laptop() -> None:
    rows = diagnose(LAPTOP).devices
    assert rows["cpu"] == "A good CPU, 8 cores"
    assert rows["cpu bfloat16"] == "amx_bf16, avx512_bf16"
    assert rows["cuda"] == "none"
    assert rows["precision=auto"] == "bf16 on cpu"


def test_devices__server() -> None:
    rows = diagnose(SERVER).devices
    assert rows["cuda:0"] == "NVIDIA H200, 139 GiB, capability 9.0"
    assert rows["onnxruntime"] == "CUDAExecutionProvider, CPUExecutionProvider"


# Clashes: each is an error


@pytest.mark.parametrize(
    ("facts", "planted", "keep"),
    [
        (LAPTOP, {"onnxruntime_gpu": "1.31.0"}, "onnxruntime"),
        (SERVER, {"onnxruntime_gpu": "1.31.0"}, "onnxruntime-gpu"),
        (LAPTOP, {"faiss_gpu": "1.15.1"}, "faiss-cpu"),
        (SERVER, {"faiss_gpu_cu12": "1.14.1"}, "faiss-gpu-cu12"),
        (LAPTOP, {"pillow_simd": "9.5.0"}, "pillow"),
    ],
)
def test_doubled_modules__is_an_error(facts: Facts, planted: dict[str, str], keep: str) -> None:
    facts = with_distributions(facts, **planted)
    finding = only_finding(replace(facts, requirements={}))
    (name,) = (name.replace("_", "-") for name in planted)
    assert finding.level == "error"
    assert name in finding.what
    assert finding.do.startswith("pip uninstall -y ")
    assert finding.do.endswith(f" && pip install {keep}")
    assert not diagnose(facts).healthy


def test_unmet_requirements__wrong_version() -> None:
    finding = only_finding(with_distributions(LAPTOP, timm="0.9.2"))
    assert finding == Finding("error", "mcbeit needs timm>=1.0.22, found 0.9.2", "pip install 'timm>=1.0.22'")


def test_unmet_requirements__torch_and_torchvision_do_not_fit() -> None:
    facts = replace(LAPTOP, requirements={"torchvision": ("torch==2.13.0",)})
    assert only_finding(facts).what == "torchvision needs torch==2.13.0, found 2.14.1+cpu"


def test_unmet_requirements__a_local_build_is_the_version() -> None:
    assert diagnose(replace(LAPTOP, requirements={"torchvision": ("torch==2.14.1",)})).healthy


def test_unmet_requirements__missing() -> None:
    assert only_finding(without(LAPTOP, "timm")).what == "mcbeit needs timm>=1.0.22, which is not installed"


def test_unmet_requirements__optional_is_judged_only_when_installed() -> None:
    assert diagnose(without(LAPTOP, "onnxruntime")).findings == ()
    finding = only_finding(with_distributions(LAPTOP, onnxruntime="1.10.0"))
    assert (finding.level, finding.what) == ("warning", "mcbeit needs onnxruntime>=1.20, found 1.10.0")


def test_unmet_requirements__unreadable_metadata_is_passed_over() -> None:
    assert diagnose(replace(LAPTOP, requirements={"timm": ("torch >>> 2",)})).healthy


def test_broken_imports__is_an_error() -> None:
    facts = replace(LAPTOP, import_errors={"torchvision": "RuntimeError: operator torchvision::nms does not exist"})
    finding = only_finding(facts)
    assert finding.level == "error"
    assert "operator torchvision::nms does not exist" in finding.what
    assert finding.do == "pip install --force-reinstall torch torchvision"


# GPUs


@pytest.mark.parametrize(
    ("change", "level", "part"),
    [
        ({"nvidia_driver": True}, "warning", "built without CUDA"),
        ({"nvidia_driver": True, "cuda_build": "13.0"}, "warning", "CUDA 13.0 sees no GPU"),
        (
            {"nvidia_driver": True, "cuda_build": "13.0", "cuda_problem": "driver too old"},
            "warning",
            "(driver too old)",
        ),
        ({"cuda_build": "13.0"}, "info", "there is no GPU: it runs on the CPU"),
    ],
)
def test_gpu_trouble__no_gpu_in_use(change: dict[str, object], level: str, part: str) -> None:
    facts = replace(LAPTOP, **change)  # type: ignore[arg-type]
    finding = only_finding(facts)
    assert finding.level == level
    assert part in finding.what
    assert diagnose(facts).healthy


def test_gpu_trouble__torch_without_kernels_for_it() -> None:
    finding = only_finding(replace(SERVER, cuda_devices=(H200, CudaDevice("Tesla V100", 16 * GIB, (7, 0)))))
    assert finding.level == "error"
    assert finding.what == "torch has no kernels for cuda:1 (Tesla V100): it has sm_80 sm_90"


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((9, 0), ("sm_80", "sm_90"), True),
        ((8, 9), ("sm_80", "sm_90"), True),
        ((7, 5), ("sm_80", "sm_90"), False),
        ((12, 0), ("sm_80", "sm_90"), False),
        ((12, 0), ("sm_90", "compute_90"), True),
        ((12, 1), ("sm_90a", "sm_120"), True),
        ((9, 0), ("gfx90a", "gfx942"), True),
        ((9, 0), (), True),
    ],
)
def test_has_kernels(capability: tuple[int, int], architectures: tuple[str, ...], expected: bool) -> None:
    assert has_kernels(capability, architectures) is expected


def test_gpu_trouble__onnxruntime_without_it() -> None:
    finding = only_finding(replace(SERVER, onnx_providers=("CPUExecutionProvider",)))
    assert finding.level == "info"
    assert "mcbeit[gpu]" in finding.do


# Settings and storage


def test_slow_settings__more_threads_than_the_container_may_use() -> None:
    finding = only_finding(replace(LAPTOP, num_cores=2.5, num_threads=16))
    assert finding.level == "warning"
    assert finding.what == "torch starts 16 threads and this process may use 2.5 cores"
    assert finding.do == "export OMP_NUM_THREADS=2"


def test_slow_settings__one_thread_of_many_cores() -> None:
    assert only_finding(replace(LAPTOP, num_threads=1)).level == "info"
    assert diagnose(replace(SERVER, num_threads=1)).findings == ()


@pytest.mark.parametrize(("text", "cores"), [("max 100000\n", float("inf")), ("150000 100000\n", 1.5)])
def test_cores_of_quota(text: str, cores: float) -> None:
    assert cores_of_quota(text) == cores


@pytest.mark.parametrize(("quota", "cores"), [("max 100000\n", 8.0), ("150000 100000\n", 1.5), (None, 8.0)])
def test_num_cores__is_the_affinity_or_the_quota_if_that_is_less(
    quota: str | None, cores: float, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    assert num_cores() == cores


def test_small_storage() -> None:
    shared, disk = diagnose(replace(LAPTOP, shared_memory_bytes=64 * 1024**2, disk_free_bytes=GIB)).findings
    assert shared.what.startswith("/dev/shm has 64 MiB")
    assert "--shm-size" in shared.do
    assert disk.what.startswith("1.0 GiB of disk")


def test_diagnose__worst_first() -> None:
    facts = replace(with_distributions(LAPTOP, timm="0.9"), cuda_build="13.0", shared_memory_bytes=0)
    assert [finding.level for finding in diagnose(facts).findings] == ["error", "warning", "info"]


def test_diagnose__a_machine_with_nothing() -> None:
    report = diagnose(Facts())
    assert report.healthy
    assert {row.version for row in report.versions} == {"", None}


# The command


def test_as_text__one_row_a_line() -> None:
    text = as_text(tables(diagnose(with_distributions(LAPTOP, onnxruntime_gpu="1.31.0"))))
    assert "  torch            2.14.1+cpu\n" in text
    assert "\n\ndevices\n" in text
    assert re.search(
        r"^  error  onnxruntime and onnxruntime-gpu are both installed.*-> pip uninstall", text, re.MULTILINE
    )
    assert "nothing that would go wrong" in as_text(tables(diagnose(LAPTOP)))


def test_gather__sees_this_machine() -> None:
    facts = gather()
    assert facts.distributions["torch"]
    assert any(line.startswith("torch") for line in facts.requirements["torchvision"])
    assert facts.num_cores > 0
    assert facts.num_threads
    assert facts.precision
    assert facts.disk_free_bytes


def test_command__json() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    report = json.loads(result.stdout)
    assert result.exit_code == (0 if report["healthy"] else 1)
    assert {"python", "torch", "ray"} <= {row["name"] for row in report["versions"]}
    assert set(report) == {"healthy", "versions", "devices", "findings"}


def test_command__plain_when_piped() -> None:
    text = CliRunner().invoke(cli, ["doctor"]).stdout
    titles = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert titles == ["versions", "devices", "findings"]
    assert text.isascii()


def test_command__clash_exits_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        metadata = tmp_path / f"{name}-1.31.0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 1
    assert "error  onnxruntime and onnxruntime-gpu are both installed" in result.stdout
