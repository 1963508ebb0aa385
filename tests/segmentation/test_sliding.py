"""Sliding windows against a naive loop, and the scores at another size."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mcbeit.segmentation.sliding as module
from mcbeit.errors import ConfigError
from mcbeit.segmentation.sliding import best_class, check_stride, slide, starts

SIZE, STRIDE = 16, 10


def window_model(seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Scores that depend on the whole window, so that it matters where windows lie."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, 3, 3, generator=generator, dtype=torch.float64)
    place = torch.randn(5, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return lambda windows: (
        F.conv2d(windows, weight, padding=1) + place * windows.mean(dim=(1, 2, 3))[:, None, None, None]
    )


def naive(image: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Pixel by pixel: the mean over all windows that see it."""
    _, height, width = image.shape
    tops = sorted({min(top, max(height - SIZE, 0)) for top in range(0, height + STRIDE, STRIDE)})
    lefts = sorted({min(left, max(width - SIZE, 0)) for left in range(0, width + STRIDE, STRIDE)})
    seen = {
        (top, left): score(image[None, :, top : top + SIZE, left : left + SIZE])[0] for top in tops for left in lefts
    }
    found = torch.zeros(5, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            values = [
                one[:, y - top, x - left]
                for (top, left), one in seen.items()
                if 0 <= y - top < SIZE and 0 <= x - left < SIZE
            ]
            found[:, y, x] = torch.stack(values).mean(dim=0)
    return found


@pytest.mark.parametrize("size", [(16, 16), (16, 27), (37, 26), (36, 46)], ids=str)
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_slide__equals_a_naive_loop(size: tuple[int, int], batch_size: int) -> None:
    image = torch.randn(3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    score = window_model()
    found = slide(image, score, size=SIZE, stride=STRIDE, batch_size=batch_size)
    torch.testing.assert_close(found, naive(image, score))


def test_starts__as_published() -> None:
    assert starts(683, 512, 341) == [0, 171]  # the last one ends at the border
    assert starts(512, 512, 341) == [0]
    assert starts(853, 512, 341) == [0, 341]
    assert starts(854, 512, 341) == [0, 341, 342]
    assert starts(300, 512, 341) == [0]


def test_slide__pads_an_image_that_is_smaller_than_a_window() -> None:
    image = torch.ones(3, 9, 20)
    seen = []

    def score(windows: Tensor) -> Tensor:
        seen.append(windows)
        return windows[:, :1].repeat(1, 5, 1, 1)

    found = slide(image, score, size=SIZE, stride=STRIDE, batch_size=4, fill=(7.0, 8.0, 9.0))
    assert found.shape == (5, 9, 20)
    assert bool((found == 1).all())
    assert seen[0].shape == (2, 3, SIZE, SIZE)
    assert seen[0][0, :, 12, 3].tolist() == [7, 8, 9]


def test_best_class__is_the_argmax_of_scaled_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(7, 12, 9, generator=torch.Generator().manual_seed(2))
    expected = F.interpolate(scores[None], size=(40, 31), mode="bilinear")[0].argmax(dim=0)
    assert torch.equal(best_class([scores], 40, 31), expected)
    monkeypatch.setattr(module, "MAX_SCORES", 7 * 31 * 3)  # three rows at once
    assert torch.equal(best_class([scores], 40, 31), expected)
    assert torch.equal(
        best_class([scores], 5, 31), F.interpolate(scores[None], size=(5, 31), mode="bilinear")[0].argmax(0)
    )


def test_best_class__of_several_looks_is_that_of_the_mean_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [torch.randn(4, *size, generator=torch.Generator().manual_seed(3)) * 3 for size in ((8, 9), (16, 12))]
    wide = [F.interpolate(one[None], size=(20, 22), mode="bilinear")[0].softmax(dim=0) for one in looks]
    expected = torch.stack(wide).mean(dim=0).argmax(dim=0)
    monkeypatch.setattr(module, "MAX_SCORES", 4 * 22 * 6)
    assert torch.equal(best_class(looks, 20, 22), expected)
    assert not torch.equal(expected, torch.stack([w.log() for w in wide]).mean(dim=0).argmax(dim=0))


def test_check_stride__refuses_gaps_between_windows() -> None:
    check_stride(16, 16, key="eval.stride")
    with pytest.raises(ConfigError, match=r"eval.stride=17 is more than a window, 16 pixels"):
        check_stride(17, 16, key="eval.stride")
