import math

import pytest
import torch

from mcbeit import device as device_module
from mcbeit.config import validate
from mcbeit.device import (
    PRECISIONS,
    ComputeConfig,
    choose_device,
    choose_precision,
    has_bf16_products,
    matmul_peak,
    peak_memory,
    synchronise,
)
from mcbeit.errors import ConfigError

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")


@pytest.fixture
def capabilities(monkeypatch) -> dict[str, bool]:
    """What torch says of this CPU; empty until a test fills it."""
    found: dict[str, bool] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    return found


# choose_device


@pytest.mark.parametrize(
    ("has_cuda", "has_mps", "wanted"),
    [(True, True, torch.device("cuda", 3)), (False, True, MPS), (False, False, CPU)],
)
def test_choose_device__cuda_before_apple_before_the_cpu(
    has_cuda: bool, has_mps: bool, wanted: torch.device, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    assert choose_device() == wanted


# choose_precision


@pytest.mark.parametrize(
    ("capability", "wanted"),
    [((6, 1), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16"), ((12, 0), "bf16")],
)
def test_choose_precision__auto_on_cuda_goes_by_its_generation(
    capability: tuple[int, int], wanted: str, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_precision("auto", CUDA).name == wanted


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({}, "fp32"),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"bf16": True}, "bf16"),  # ARM
    ],
)
def test_choose_precision__auto_on_a_cpu_goes_by_its_instructions(
    found: dict[str, bool], wanted: str, capabilities
) -> None:
    capabilities.update(found)
    assert choose_precision("auto", CPU).name == wanted
    assert has_bf16_products() == (wanted == "bf16")


def test_choose_precision__auto_on_apple_is_fp32(capabilities) -> None:
    capabilities["bf16"] = True
    assert choose_precision("auto", MPS).name == "fp32"


@pytest.mark.parametrize("device", [CPU, CUDA, MPS])
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_choose_precision__a_name_is_what_it_says(name: str, device: torch.device) -> None:
    assert choose_precision(name, device) is PRECISIONS[name]


def test_precision__only_fp16_scales_the_loss() -> None:
    assert {name: precision.scales_loss for name, precision in PRECISIONS.items()} == {
        "fp32": False,
        "bf16": False,
        "fp16": True,
    }


@pytest.mark.parametrize("name", PRECISIONS)
def test_autocast__multiplies_in_the_precision(name: str) -> None:
    left = torch.ones(2, 2)
    with PRECISIONS[name].autocast(CPU):
        assert (left @ left).dtype == PRECISIONS[name].dtype
    assert (left @ left).dtype == torch.float32


# speed and memory


def test_matmul_peak__is_a_speed() -> None:
    before = torch.get_rng_state()
    speed = matmul_peak(CPU, torch.float32, seconds=0.0)
    assert 0 < speed < math.inf
    assert torch.equal(torch.get_rng_state(), before)


def test_matmul_peak__is_that_of_the_fastest_product(monkeypatch) -> None:
    class Clock:
        # the start; then for each product: time left? before, after
        times = iter([0.0, 0.1, 1.0, 9.0, 9.1, 10.0, 12.0, 12.1, 20.0, 25.0, 99.0])

        def perf_counter(self) -> float:
            return next(self.times)

    monkeypatch.setattr(device_module, "time", Clock())
    assert matmul_peak(CPU, torch.float32, seconds=30.0) == 2 * 2048**3 / 2.0


def test_peak_memory__is_not_counted_on_a_cpu() -> None:
    assert peak_memory(CPU) is None
    synchronise(CPU)  # nothing to wait for


def test_compute_config__refuses() -> None:
    for values in ({"precision": "fp8"}, {"threads": 0}, {"device": "cuda"}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            validate(ComputeConfig, values)
