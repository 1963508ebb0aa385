"""How wrong cheap products may be, and which are cheap here."""

from typing import get_args

import numpy as np
import pytest
import torch

from mcbeit.bench.first_pass import (
    Format,
    choose_format,
    error_bound,
    has_int8_products,
    products,
    require_products,
    round_vectors,
)
from mcbeit.errors import BenchError

CPU = torch.device("cpu")


@pytest.mark.parametrize("number_format", get_args(Format))
@pytest.mark.parametrize("center", [0.0, 1.0])
@pytest.mark.parametrize("dim", [1, 3, 200])
def test_error_bound__holds_and_is_not_far_off(number_format: Format, center: float, dim: int) -> None:
    if number_format == "int8" and not has_int8_products(CPU):
        pytest.skip("no exact int8 products here")
    rng = np.random.default_rng(0)
    queries, gallery = (rng.standard_normal((count, dim), dtype=np.float32) + 1 for count in (30, 400))
    middle = torch.full((dim,), center)
    asked, stored = (round_vectors(vectors, middle, number_format) for vectors in (queries, gallery))
    true = queries.astype(np.float64) @ gallery.astype(np.float64).T - (queries @ middle.numpy())[:, None]
    error = np.abs(products(asked, stored).double().numpy() - true)
    bound = error_bound(asked, stored, middle).numpy()
    assert (error <= bound[:, None]).all()
    assert bound.mean() < {"fp32": 1e-3, "bf16": 0.05, "int8": 0.05}[number_format] * dim


def test_round_vectors__loses_less_in_a_narrow_cone() -> None:
    vectors = 1 + 0.01 * np.random.default_rng(0).standard_normal((100, 50), dtype=np.float32)
    apart = round_vectors(vectors, torch.zeros(50), "bf16")
    around = round_vectors(vectors, torch.ones(50), "bf16")
    assert around.lost.mean() < 0.02 * apart.lost.mean()


def test_round_vectors__keeps_zeros() -> None:
    found = round_vectors(np.zeros((2, 5), np.float32), torch.zeros(5), "int8")
    assert not found.numbers.any()
    assert not found.lost.any()


def test_choose_format__is_what_the_hardware_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    has: dict[str, bool] = {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert choose_format(CPU) == "fp32"
    has["avx512_bf16"] = True
    assert choose_format(CPU) == "bf16"
    has["avx512_vnni"] = True
    assert choose_format(CPU) == "int8"
    assert choose_format(torch.device("meta")) == "fp32"


def test_require_products__refuses_int8_that_would_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    require_products("bf16", CPU)
    with pytest.raises(BenchError, match="cpu has no instructions for it here; take auto"):
        require_products("int8", CPU)
