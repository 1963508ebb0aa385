import pytest
import torch

from mcbeit.detection.sampling import DiceSampler


def labels(positive: int, negative: int, ignored: int) -> torch.Tensor:
    """Classes 1 and 2 in turn, background, and what is between the two."""
    return torch.tensor([1 + i % 2 for i in range(positive)] + [0] * negative + [-1] * ignored)


@pytest.mark.parametrize(
    ("candidates", "drawn"),
    [((500, 500, 50), (128, 384)), ((10, 5000, 50), (10, 502)), ((500, 5, 0), (128, 5)), ((0, 300, 9), (0, 300))],
)
def test_dice_sampler__a_quarter_is_positive_if_there_are_as_many(candidates: tuple, drawn: tuple) -> None:
    sampler = DiceSampler(512, 0.25)
    sampler.throw(torch.tensor([0.3]))
    ((positive,), (negative,)) = sampler([labels(*candidates)])
    assert (int(positive.sum()), int(negative.sum())) == drawn
    assert (labels(*candidates)[positive] >= 1).all()
    assert (labels(*candidates)[negative] == 0).all()


def test_dice_sampler__an_image_has_the_same_candidates_in_any_batch() -> None:
    sampler, found = DiceSampler(64, 0.5), [labels(100, 300, 5).float(), labels(200, 80, 0).float()]
    sampler.throw(torch.tensor([0.1, 0.7]))
    together = sampler(found)
    for i, die in enumerate((0.1, 0.7)):
        sampler.throw(torch.tensor([die]))
        alone = sampler([found[i]])
        assert torch.equal(together[0][i], alone[0][0])
        assert torch.equal(together[1][i], alone[1][0])
    sampler.throw(torch.tensor([0.1001]))
    assert not torch.equal(sampler([found[0]])[1][0], together[1][0])


def test_dice_sampler__leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    sampler = DiceSampler(4, 0.5)
    sampler.throw(torch.tensor([0.5]))
    sampler([labels(10, 10, 0)])
    assert torch.equal(torch.get_rng_state(), before)


def test_dice_sampler__needs_dice() -> None:
    sampler = DiceSampler(4, 0.5)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"needs dice in training; give them to MaskRCNN\.forward"):
            sampler([labels(1, 1, 1)])
        sampler.throw(None)
