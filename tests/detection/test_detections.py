import pytest
import torch
from torch import Tensor

from mcbeit.detection.detections import Detections


def found(*boxes: list[float], masks: Tensor | None = None) -> Detections:
    """Objects with these boxes; their masks are full if none are given."""
    count = len(boxes)
    return Detections(
        torch.tensor(boxes).view(count, 4),
        torch.linspace(0.9, 0.5, count),
        torch.arange(count),
        torch.ones(count, 28, 28) if masks is None else masks,
    )


def test_in_image__one_factor_scales_both_axes() -> None:
    """An image of 100 x 199 pixels was resized to 64 x 128 (63.7 rounded up)... and boxes grow by 199 / 128 alone."""
    moved = found([10.0, 20.0, 30.0, 40.0]).in_image(100, 199, size=128)
    torch.testing.assert_close(moved.boxes, torch.tensor([[10.0, 20.0, 30.0, 40.0]]) * 199 / 128)


def test_in_image__cuts_at_the_edges_and_leaves_out_what_is_in_the_padding() -> None:
    """A portrait image of 200 x 100 pixels fills the left half of the square of 100."""
    moved = found([-5.0, 90.0, 60.0, 110.0], [50.0, 0.0, 99.0, 99.0], [49.0, 1.0, 51.0, 2.0]).in_image(200, 100, 100)
    assert moved.boxes.tolist() == [[0, 180, 100, 200], [98, 2, 100, 4]]
    assert moved.labels.tolist() == [0, 2]
    assert (len(moved.scores), len(moved.masks)) == (2, 2)


def test_pasted__full_masks_fill_their_boxes() -> None:
    """A pixel belongs to the box if its centre does."""
    pasted = list(found([2.0, 3.0, 7.0, 5.0], [0.4, 0.6, 9.6, 7.4], [-3.0, -3.0, 99.0, 2.0]).pasted(8, 10))
    assert [int(mask.sum()) for mask in pasted] == [5 * 2, 10 * 6, 10 * 2]
    assert pasted[0][3:5, 2:7].all()
    assert not pasted[1][0].any()  # its centre is at 0.5, above 0.6
    assert pasted[1][1].all()
    assert all(mask.shape == (8, 10) and mask.dtype == torch.bool for mask in pasted)


def test_pasted__a_mask_of_as_many_cells_as_pixels_is_that_mask() -> None:
    cells = torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(0))
    (pasted,) = found([5.0, 2.0, 33.0, 30.0], masks=cells).pasted(40, 50)
    assert torch.equal(pasted[2:30, 5:33], cells[0] >= 0.5)
    assert int(pasted.sum()) == int((cells >= 0.5).sum())


def read(mask: Tensor, row: float, column: float) -> float:
    """The mask at a place in cells, bilinear between the centres of cells, zeros around."""
    total, side = 0.0, len(mask)
    for i in range(side):
        for j in range(side):
            weight = max(0.0, 1 - abs(row - i - 0.5)) * max(0.0, 1 - abs(column - j - 0.5))
            total += weight * float(mask[i, j])
    return total


def test_pasted__reads_bilinearly_at_the_centres_of_pixels() -> None:
    masks = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1))
    left, top, right, bottom = 1.3, 0.7, 11.9, 8.2
    (pasted,) = found([left, top, right, bottom], masks=masks).pasted(10, 13)
    for y in range(10):
        for x in range(13):
            place = ((y + 0.5 - top) / (bottom - top) * 4, (x + 0.5 - left) / (right - left) * 4)
            assert bool(pasted[y, x]) == (read(masks[0], *place) >= 0.5), (y, x)


def test_pasted__nothing_found() -> None:
    empty = found(masks=torch.zeros(0, 28, 28))
    assert list(empty.pasted(8, 8)) == []
    assert empty.in_image(8, 8, 16).boxes.shape == (0, 4)


@pytest.mark.parametrize("side", [3.0, 0.2])
def test_pasted__boxes_smaller_than_a_pixel_may_have_none(side: float) -> None:
    (pasted,) = found([4.0, 4.0, 4.0 + side, 4.0 + side]).pasted(9, 9)
    assert int(pasted.sum()) == (9 if side == 3.0 else 0)


def test_to__moves_everything() -> None:
    moved = found([1.0, 1.0, 2.0, 2.0]).to(torch.device("meta"))
    assert {value.device.type for value in moved} == {"meta"}
