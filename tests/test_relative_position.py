import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline, RectBivariateSpline
from timm.models.beit import RelativePositionBias
from torch import Tensor

from mcbeit.relative_position import cubic_matrix, growth_ratio, num_table_rows, resize_table, source_coordinates

GRIDS = [(14, 16), (14, 24), (14, 32), (14, 12), (14, 7), (5, 9), (3, 3), (3, 14), (3, 2), (2, 2), (2, 7), (14, 1)]


def make_table(grid: tuple[int, int], heads: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_table_rows(grid), heads, generator=generator, dtype=torch.float64).to(dtype)


def by_scipy(table: Tensor, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """The official rule, head by head, with the spline that SciPy names as the successor of `interp2d`."""
    axes = []
    for patches, wanted in zip(source, target, strict=True):
        low, high, ratio = 1.01, 1.5, 0.0
        while high - low > 1e-6:
            ratio = (low + high) / 2
            if sum(ratio**i for i in range(patches - 1)) > wanted - 1:
                high = ratio
            else:
                low = ratio
        positive = [sum(ratio**i for i in range(distance)) for distance in range(1, patches)]
        axes.append(np.array([-x for x in reversed(positive)] + [0.0] + positive))
    sizes = [2 * patches - 1 for patches in source]
    wanted_rows, wanted_columns = (np.arange(1.0 - patches, patches) for patches in target)
    heads = [
        RectBivariateSpline(*axes, head.reshape(sizes), kx=min(3, sizes[0] - 1), ky=min(3, sizes[1] - 1))
        for head in table[:-3].T.numpy()
    ]
    return np.stack([spline(wanted_rows, wanted_columns).ravel() for spline in heads], axis=1)


# num_table_rows, growth_ratio, source_coordinates


@pytest.mark.parametrize(("patches", "rows"), [(14, 732), (24, 2212), (32, 3972), (40, 6244), (64, 16132)])
def test_num_table_rows__of_the_published_sizes(patches: int, rows: int) -> None:
    assert num_table_rows((patches, patches)) == rows


def test_num_table_rows__is_what_timm_allocates() -> None:
    for grid in [(14, 14), (2, 5), (1, 1)]:
        assert num_table_rows(grid) == len(RelativePositionBias(grid, 1).relative_position_bias_table)


@pytest.mark.parametrize(
    ("patches", "ratio", "outermost"),
    [(16, 1.023493, 15.0), (24, 1.090307, 22.9999), (32, 1.134918, 31.0002), (40, 1.168504, 39.0001),
     (64, 1.237505, 63.0003), (12, 1.010001, 13.81), (7, 1.010001, 13.81)],
)  # fmt: skip
def test_growth_ratio__of_the_published_sizes(patches: int, ratio: float, outermost: float) -> None:
    size = 2 * patches - 1
    assert round(growth_ratio(27, size), 6) == ratio
    coordinates = source_coordinates(27, size)
    assert len(coordinates) == 27
    assert coordinates[-1] == -coordinates[0] == pytest.approx(outermost, abs=5e-3 if patches < 14 else 5e-5)


def test_source_coordinates__grow_geometrically_from_the_middle() -> None:
    coordinates = source_coordinates(27, 63)
    np.testing.assert_allclose(coordinates[13:19], [0, 1, 2.1349, 3.4230, 4.8848, 6.5438], atol=5e-5)
    assert (coordinates == -coordinates[::-1]).all()


# cubic_matrix


@given(
    st.lists(st.floats(0.1, 3.0), min_size=0, max_size=12),
    st.lists(st.floats(-3.0, 3.0), min_size=4, max_size=4),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_cubic_matrix__reads_polynomials_exactly(
    steps: list[float], coefficients: list[float], where: list[float]
) -> None:
    source = np.cumsum([-1.0, *steps])
    target = source[0] + np.array(where) * (source[-1] - source[0])
    polynomial = np.polynomial.Polynomial(coefficients[: len(source)])  # n points bear a polynomial of degree n - 1
    scale = 1 + np.abs(polynomial(source)).max()
    np.testing.assert_allclose(cubic_matrix(source, target) @ polynomial(source), polynomial(target), atol=1e-9 * scale)


@pytest.mark.parametrize("points", [4, 5, 8, 27])
def test_cubic_matrix__is_the_not_a_knot_spline(points: int) -> None:
    source = np.cumsum(np.linspace(0.5, 2, points))
    target = np.linspace(source[0], source[-1], 50)
    spline = CubicSpline(source, np.eye(points), bc_type="not-a-knot")
    np.testing.assert_allclose(cubic_matrix(source, target), spline(target), atol=1e-13)


def test_cubic_matrix__reads_beyond_the_ends_at_the_ends() -> None:
    for points in (1, 3, 6):
        matrix = cubic_matrix(np.arange(float(points)), np.array([-5.0, points + 5.0]))
        np.testing.assert_allclose(matrix, np.eye(points)[[0, -1]], atol=1e-15)


# resize_table


@pytest.mark.parametrize(("source", "target"), GRIDS)
def test_resize_table__is_the_official_rule(source: int, target: int) -> None:
    before, after = (source, source), (target, target)
    table = make_table(before, heads=3)
    resized = resize_table(table, before, after)
    assert resized.shape == (num_table_rows(after), 3)
    if source != target:  # the official code resizes only then
        np.testing.assert_allclose(resized[:-3].numpy(), by_scipy(table, before, after), rtol=0, atol=1e-12)
    assert (resized[-3:] == table[-3:]).all()


@pytest.mark.parametrize(("source", "target"), [((4, 7), (9, 8)), ((2, 6), (6, 2)), ((14, 14), (7, 20))])
def test_resize_table__of_any_grid_follows_the_rule_on_each_axis(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    table = make_table(source, heads=2)
    resized = resize_table(table, source, target)
    np.testing.assert_allclose(resized[:-3].numpy(), by_scipy(table, source, target), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (14, 14), (3, 8)])
def test_resize_table__to_the_same_grid_changes_nothing(grid: tuple[int, int]) -> None:
    table = make_table(grid, heads=2)
    assert (resize_table(table, grid, grid) == table).all()


def test_resize_table__treats_every_head_alone() -> None:
    table = make_table((5, 5), heads=4)
    heads = [resize_table(table[:, [head]], (5, 5), (8, 8)) for head in range(4)]
    torch.testing.assert_close(resize_table(table, (5, 5), (8, 8)), torch.cat(heads, dim=1), rtol=0, atol=1e-14)


def test_resize_table__keeps_near_distances_in_place_when_growing() -> None:
    """The neighbours at distance 0 and 1 are source entries themselves: nothing is interpolated there."""
    table = make_table((14, 14)).flatten()
    resized = resize_table(table[:, None], (14, 14), (24, 24)).flatten()
    before, after = table[:-3].view(27, 27), resized[:-3].view(47, 47)
    torch.testing.assert_close(after[22:25, 22:25], before[12:15, 12:15], rtol=0, atol=1e-12)


def test_resize_table__of_one_row_of_patches_resizes_along_the_row() -> None:
    table = make_table((1, 4), heads=2)
    resized = resize_table(table, (1, 4), (3, 8))
    along = cubic_matrix(source_coordinates(7, 15), np.arange(-7.0, 8.0)) @ table[:-3].numpy()
    for row in resized[:-3].view(5, 15, 2).numpy():  # constant down the column, where nothing is known
        np.testing.assert_allclose(row, along, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_resize_table__keeps_the_dtype_and_computes_in_float64(dtype: torch.dtype) -> None:
    table = make_table((4, 4), dtype=dtype)
    resized = resize_table(table, (4, 4), (6, 6))
    assert resized.dtype == dtype
    assert (resized == resize_table(table.double(), (4, 4), (6, 6)).to(dtype)).all()


def test_resize_table__gives_a_plain_tensor_from_a_parameter() -> None:
    resized = resize_table(torch.nn.Parameter(make_table((4, 4))), (4, 4), (6, 6))
    assert not resized.requires_grad


@pytest.mark.parametrize(("source", "rows"), [((14, 14), 732), ((13, 15), 728)])
def test_resize_table__refuses_a_table_of_another_grid(source: tuple[int, int], rows: int) -> None:
    table = torch.zeros(num_table_rows((7, 7)), 12)
    with pytest.raises(ValueError) as error:
        resize_table(table, source, (24, 24))
    assert str(error.value) == f"a table for grid {source} has {rows} rows, found 172"
