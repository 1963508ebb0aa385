import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mcbeit.targets import (
    code_probabilities,
    entropy,
    gather_patches,
    hard_probabilities,
    masked_patch_ids,
    mixing_weights,
    patch_affinity,
    refine,
)

IDS = torch.tensor([[0, 2], [1, 4], [3, 4]])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_rows_sum_to_one(rows: Tensor) -> None:
    assert (rows >= 0).all()
    torch.testing.assert_close(rows.sum(dim=-1), torch.ones_like(rows[..., 0]))


# code_probabilities, hard_probabilities


@given(st.sampled_from([1e-4, 0.1, 1.0, 4.0, 1e4]), st.integers(1, 30), st.floats(0, 1), st.floats(0.05, 20))
def test_targets__rows_sum_to_one(temperature: float, codes: int, refine_weight: float, sharpness: float) -> None:
    probabilities = code_probabilities(5 * normal(2, 6, codes), temperature=temperature)
    affinity = patch_affinity(normal(2, 6, 4), similarity_temperature=1 / sharpness)
    for rows in (probabilities, affinity, refine(probabilities, affinity, refine_weight=refine_weight)):
        assert_rows_sum_to_one(rows)


def test_code_probabilities__divide_the_logits_by_the_temperature() -> None:
    logits = torch.tensor([[[4 * math.log(3.0), 0.0]]])
    torch.testing.assert_close(code_probabilities(logits, temperature=4.0), torch.tensor([[[0.75, 0.25]]]))


def test_code_probabilities__are_hard_when_cold_and_uniform_when_hot() -> None:
    logits = normal(3, 5, 7)
    torch.testing.assert_close(code_probabilities(logits, temperature=1e-4), hard_probabilities(logits))
    torch.testing.assert_close(code_probabilities(logits, temperature=1e12), torch.full_like(logits, 1 / 7))
    entropies = [entropy(code_probabilities(logits, temperature=t)).mean() for t in (0.1, 1.0, 4.0, 20.0)]
    assert entropies == sorted(entropies)


def test_hard_probabilities__are_one_at_the_best_code() -> None:
    logits = torch.tensor([[[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]]])
    assert hard_probabilities(logits).tolist() == [[[0, 1, 0], [1, 0, 0]]]


@pytest.mark.parametrize(
    ("given_dtype", "wanted"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_targets__are_at_least_float32(given_dtype: torch.dtype, wanted: torch.dtype) -> None:
    values = normal(2, 5, 7, dtype=given_dtype)
    assert code_probabilities(values, temperature=1.0).dtype == wanted
    assert hard_probabilities(values).dtype == wanted
    assert patch_affinity(values, similarity_temperature=1.0).dtype == wanted


def test_code_probabilities__of_half_precision_logits_do_not_vanish() -> None:
    """Most of 8192 probabilities are below 6e-5, where float16 loses digits."""
    logits = 6 * normal(1, 2, 8192, dtype=torch.float16)
    probabilities = code_probabilities(logits, temperature=4.0)
    assert (probabilities < 6e-5).float().mean() > 0.4
    torch.testing.assert_close(probabilities, torch.softmax(logits.double() / 4, dim=-1).float())


# patch_affinity


def test_patch_affinity__is_a_softmax_of_cosine_similarities() -> None:
    features = torch.tensor([[[2.0, 0.0], [0.0, 0.5], [-3.0, 0.0]]])  # cosines of the first row: 1, 0, -1
    first = patch_affinity(features, similarity_temperature=0.5)[0, 0]
    torch.testing.assert_close(first, torch.softmax(torch.tensor([2.0, 0.0, -2.0]), dim=0))


@given(st.integers(1, 196), st.integers(1, 8), st.integers(0, 99), st.sampled_from([0.1, 1.0, 3.0]))
def test_patch_affinity__to_itself_is_bounded(patches: int, dim: int, seed: int, similarity_temperature: float) -> None:
    """Cosines lie in [-1, 1]: no patch can keep more than e^2 times what the most distant one gets."""
    affinity = patch_affinity(normal(1, patches, dim, seed=seed), similarity_temperature=similarity_temperature)
    own = affinity.diagonal(dim1=1, dim2=2)
    ratio = math.exp(2 / similarity_temperature)
    assert (own <= ratio / (ratio + patches - 1) * (1 + 1e-12)).all()
    assert (own >= 1 / patches * (1 - 1e-12)).all()


def test_patch_affinity__reaches_the_bound_where_all_others_are_opposite() -> None:
    features = torch.cat([torch.ones(1, 1, 3), -torch.ones(1, 195, 3)], dim=1)
    affinity = patch_affinity(features, similarity_temperature=1.0)
    assert affinity[0, 0, 0].item() == pytest.approx(0.03651, abs=5e-6)
    assert affinity.diagonal(dim1=1, dim2=2).max() == affinity[0, 0, 0]


def test_patch_affinity__gives_the_rows_of_the_given_patches() -> None:
    features = normal(3, 5, 4)
    every = patch_affinity(features, similarity_temperature=0.3)
    torch.testing.assert_close(
        patch_affinity(features, IDS, similarity_temperature=0.3), gather_patches(every, IDS), rtol=1e-14, atol=0
    )


def test_patch_affinity__ignores_the_length_of_features_and_survives_zeros() -> None:
    features = normal(2, 5, 4)
    longer = features * torch.tensor([1e-3, 1.0, 7.0, 50.0, 1e4], dtype=torch.float64)[:, None]
    wanted = patch_affinity(features, similarity_temperature=1.0)
    torch.testing.assert_close(patch_affinity(longer, similarity_temperature=1.0), wanted)
    flat = patch_affinity(torch.zeros(1, 4, 3), similarity_temperature=1.0)
    torch.testing.assert_close(flat, torch.full((1, 4, 4), 0.25))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_patch_affinity__stays_float32_inside_autocast(dtype: torch.dtype) -> None:
    features = normal(2, 5, 64, dtype=torch.float32)
    wanted = patch_affinity(features, IDS[:2], similarity_temperature=0.05)
    with torch.autocast("cpu", dtype):
        found = patch_affinity(features, IDS[:2], similarity_temperature=0.05)
    assert found.dtype == torch.float32
    assert (found == wanted).all()


def test_patch_affinity__learns_through_both_sides_and_not_from_detached_features() -> None:
    features = normal(1, 4, 3).requires_grad_()
    affinity = patch_affinity(features, torch.tensor([[0]]), similarity_temperature=1.0)
    (gradient,) = torch.autograd.grad(affinity[0, 0, 2], features)
    assert (gradient[0].norm(dim=-1) > 1e-4).all()  # row, column, and the others by the softmax
    assert not patch_affinity(features.detach(), similarity_temperature=1.0).requires_grad


# mixing_weights, refine


@given(st.integers(1, 9), st.floats(0, 1), st.integers(0, 99))
def test_targets__follow_a_permutation_of_the_patches(patches: int, refine_weight: float, seed: int) -> None:
    order = torch.randperm(patches, generator=torch.Generator().manual_seed(seed))

    def targets(features: Tensor, logits: Tensor) -> Tensor:
        affinity = patch_affinity(features, similarity_temperature=0.5)
        return refine(code_probabilities(logits, temperature=2.0), affinity, refine_weight=refine_weight)

    features, logits = normal(2, patches, 4, seed=seed), normal(2, patches, 6, seed=seed)
    torch.testing.assert_close(targets(features[:, order], logits[:, order]), targets(features, logits)[:, order])


@pytest.mark.parametrize("refine_weight", [0.0, 0.2, 1.0])
def test_mixing_weights__mix_the_affinity_with_the_identity(refine_weight: float) -> None:
    affinity = patch_affinity(normal(3, 5, 4), similarity_temperature=0.3)
    mixing = mixing_weights(gather_patches(affinity, IDS), IDS, refine_weight=refine_weight)
    identity = torch.eye(5, dtype=torch.float64).expand(3, -1, -1)
    wanted = gather_patches(refine_weight * affinity + (1 - refine_weight) * identity, IDS)
    torch.testing.assert_close(mixing, wanted, rtol=1e-15, atol=0)
    assert_rows_sum_to_one(mixing)


@pytest.mark.parametrize("refine_weight", [0.0, 0.2, 1.0])
def test_mixing_weights__times_probabilities_are_the_refined_targets(refine_weight: float) -> None:
    probabilities = code_probabilities(normal(3, 5, 7), temperature=1.0)
    affinity = patch_affinity(normal(3, 5, 4), similarity_temperature=0.3)
    mixing = mixing_weights(gather_patches(affinity, IDS), IDS, refine_weight=refine_weight)
    wanted = gather_patches(refine(probabilities, affinity, refine_weight=refine_weight), IDS)
    torch.testing.assert_close(mixing @ probabilities, wanted)


def test_refine__by_hand() -> None:
    probabilities = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    affinity = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]])
    refined = refine(probabilities, affinity, refine_weight=0.2)  # 0.2 of the neighbourhood, 0.8 of its own
    torch.testing.assert_close(refined, torch.tensor([[[0.95, 0.05], [0.1, 0.9]]]))
    assert (refine(probabilities, affinity, refine_weight=0.0) == probabilities).all()
    assert (refine(probabilities, affinity, refine_weight=1.0) == affinity).all()


# entropy, gather_patches, masked_patch_ids


def test_entropy__counts_equal_choices_in_nats() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(entropy(rows).exp(), torch.tensor([1.0, 2.0, 4.0]))
    assert entropy(rows[None, None]).shape == (1, 1, 3)
    assert entropy(rows[0]).shape == ()


def test_gather_patches__takes_other_patches_of_each_image_and_learns() -> None:
    tokens = normal(3, 5, 4).requires_grad_()
    found = gather_patches(tokens, IDS)
    assert (found == torch.stack([tokens[image, ids] for image, ids in enumerate(IDS)])).all()
    found.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[..., 0].tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 1, 1]]


@given(st.integers(1, 5), st.integers(1, 12), st.data())
def test_masked_patch_ids__are_those_of_the_mask_in_order(images: int, patches: int, data: st.DataObject) -> None:
    subsets = st.permutations(range(patches)).map(lambda order: sorted(order[:masked]))
    masked = data.draw(st.integers(1, patches))
    wanted = data.draw(st.lists(subsets, min_size=images, max_size=images))
    mask = torch.zeros(images, patches, dtype=torch.bool).scatter_(1, torch.tensor(wanted), True)
    assert masked_patch_ids(mask).tolist() == wanted


@pytest.mark.parametrize(("rows", "counts"), [(["110", "100"], "[2, 1]"), (["000", "000"], "[0, 0]")])
def test_masked_patch_ids__refuses_different_counts_and_none(rows: list[str], counts: str) -> None:
    mask = torch.tensor([[patch == "1" for patch in row] for row in rows])
    with pytest.raises(ValueError) as error:
        masked_patch_ids(mask)
    message = "every image needs the same number of masked patches, at least 1; found "
    assert str(error.value) == message + counts
