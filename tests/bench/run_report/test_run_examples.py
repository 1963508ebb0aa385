"""What the parts of a run make of a few images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from images import encode, photo, write_images
from torch import Tensor

from mcbeit.bench.run_report.baselines import Features, open_probe
from mcbeit.bench.run_report.examples import (
    code_use,
    contrast,
    image_at,
    middle,
    neighbour_examples,
    picture,
    read_views,
    reconstructions,
    similarity_examples,
    target_examples,
    top_choices,
)
from mcbeit.bench.run_report.trained import TrainedRun, load_trained, read_tokenizer
from mcbeit.dvae import DiscreteVAE, DiscreteVAEConfig
from mcbeit.errors import DataError
from mcbeit.masked import ObjectiveConfig
from mcbeit.preprocess import Preprocess
from mcbeit.sources import open_folder
from mcbeit.tokenizer import Tokenizer
from mcbeit.vqgan import GumbelVQGAN, GumbelVQGANConfig


@pytest.fixture(scope="module")
def trained(finished: Path) -> TrainedRun:
    return load_trained(finished)


@pytest.fixture(scope="module")
def tokenizer(trained: TrainedRun) -> Tokenizer:
    return read_tokenizer(trained.config, trained.path)


@pytest.fixture(scope="module")
def images(shapes: Path) -> Tensor:
    """Four images of 16 px, which are the view of the backbone and of the tokenizer."""
    source = open_folder(shapes / "val")
    (views,) = read_views(source, np.array([0, 5, 13, 20]), [Preprocess(image_size=16, crop_fraction=1.0)])
    return views


def with_objective(run: TrainedRun, **values: object) -> TrainedRun:
    objective = ObjectiveConfig.model_validate({"target_perplexity": 2, **values})
    return replace(run, config=run.config.model_copy(update={"objective": objective}))


def test_read_views__passes_over_what_cannot_be_read(tmp_path: Path) -> None:
    write_images(tmp_path, {"a.png": encode(photo(32, 32)), "b.png": b"no image", "c.png": encode(photo(32, 32, 1))})
    sizes = [Preprocess(image_size=size, crop_fraction=1.0) for size in (16, 8)]
    large, small = read_views(open_folder(tmp_path), np.arange(3), sizes)
    assert large.shape == (2, 3, 16, 16)
    assert np.array_equal(picture(small[1]), sizes[1].pixels(photo(32, 32, 1)))


def test_read_views__of_nothing(tmp_path: Path) -> None:
    write_images(tmp_path, {"bad.png": b"no image"})
    with pytest.raises(DataError, match=r"none of 1 images such as '.*bad\.png' can be read"):
        read_views(open_folder(tmp_path), np.arange(1), [Preprocess()])


def test_code_use__counts_and_pictures(tokenizer: Tokenizer, images: Tensor) -> None:
    found = code_use(tokenizer, images)
    assert found.counts.sum() == 4 * 16
    assert 1 <= found.perplexity <= 16
    for count, around in zip(found.counts, found.surroundings, strict=True):
        assert around is None if count == 0 else around is not None and around.shape == (12, 12, 3)


def test_code_use__pictures_are_mean_cells_and_their_neighbours() -> None:
    class OneCode(GumbelVQGAN):
        """Every patch has code 3."""

        def code_logits(self, images: Tensor) -> Tensor:
            cells = images.shape[2] * images.shape[3] // 64
            return torch.eye(5)[3].expand(len(images), cells, 5)

    tokenizer = OneCode(GumbelVQGANConfig(vocab_size=5, dim=32))
    views = torch.arange(2 * 3 * 16 * 16).view(2, 3, 16, 16).remainder(251).byte()
    found = code_use(tokenizer, views)
    assert found.counts.tolist() == [0, 0, 0, 8, 0]
    assert found.perplexity == pytest.approx(1)
    middle = found.surroundings[3]
    assert middle is not None
    cells = torch.cat([views[:, :, y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8)])
    assert np.array_equal(middle[8:16, 8:16], picture(cells.float().mean(dim=0).round().byte()))


def test_reconstructions__are_those_of_the_tokenizer(tokenizer: Tokenizer, images: Tensor) -> None:
    assert isinstance(tokenizer, DiscreteVAE)
    found = reconstructions(tokenizer, images)
    expected = tokenizer.reconstruct(images / 127.5 - 1).clamp(-1, 1)
    assert len(found) == 4
    assert np.abs(found[2] / 127.5 - 1 - expected[2].permute(1, 2, 0).numpy()).max() < 0.005


def test_target_examples__ask_for_a_hidden_patch(trained: TrainedRun, tokenizer: Tokenizer, images: Tensor) -> None:
    found = target_examples(trained, tokenizer, images, images)
    assert len(found) == 4
    for example, image in zip(found, images, strict=True):
        assert np.array_equal(example.image, picture(image))
        assert example.mask.sum() == 12
        assert example.mask.flatten()[example.patch]
        assert example.imagined is not None
        assert example.imagined.shape == (16, 16, 3)
        assert all(1 <= size <= 16 for size in example.num_choices)
        assert [choice.refined for choice in example.choices] == sorted(c.refined for c in example.choices)[::-1]
        for probabilities in zip(*(choice[1:] for choice in example.choices), strict=True):
            assert 0 < sum(probabilities) <= 1.0001
    assert target_examples(trained, tokenizer, images, images)[0].choices == found[0].choices


def test_target_examples__nothing_to_refine(trained: TrainedRun, tokenizer: Tokenizer, images: Tensor) -> None:
    (example, *_) = target_examples(with_objective(trained, refine_weight=0), tokenizer, images, images)
    assert all(choice.own == choice.refined for choice in example.choices)


def test_target_examples__hard_targets(trained: TrainedRun, tokenizer: Tokenizer, images: Tensor) -> None:
    run = with_objective(trained, targets="hard", refine_weight=0)
    (example, *_) = target_examples(run, tokenizer, images, images)
    assert [choice.own for choice in example.choices][:2] == [1.0, 0.0]
    assert example.num_choices[0] == pytest.approx(1)


def test_target_examples__by_the_teacher(trained: TrainedRun, tokenizer: Tokenizer, images: Tensor) -> None:
    taught = replace(with_objective(trained, affinity="ema", similarity_temperature=0.05), teacher=trained.backbone)
    own = target_examples(with_objective(trained, similarity_temperature=0.05), tokenizer, images, images)
    assert target_examples(taught, tokenizer, images, images)[0].choices != own[0].choices


def test_target_examples__without_a_decoder(trained: TrainedRun, images: Tensor) -> None:
    torch.manual_seed(0)
    tokenizer = GumbelVQGAN(GumbelVQGANConfig(vocab_size=16, embed_dim=32, dim=32, multipliers=(1, 1, 1))).frozen()
    (example, *_) = target_examples(trained, tokenizer, images, images)
    assert example.imagined is None
    assert example.choices


def test_middle__of_the_sharper_half() -> None:
    contrasts = torch.tensor([0.0, 9.0, 8.0, 7.0, 1.0])
    assert middle(contrasts, torch.tensor([1.0, 5.0, 4.0, 6.0, 9.0])) == 1
    assert middle(contrasts[:1], torch.tensor([2.0])) == 0


def test_top_choices__of_target_and_prediction() -> None:
    own, refined = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.6, 0.3, 0.1, 0.0]])
    predicted = torch.tensor([0.1, 0.0, 0.0, 0.9])
    found = top_choices(torch.stack([own, refined, predicted]), num_refined=2, num_predicted=1)
    assert [choice.code for choice in found] == [0, 1, 3]
    assert found[2][1:] == pytest.approx((0.0, 0.0, 0.9))
    assert found[2].largest == pytest.approx(0.9)
    assert len(top_choices(torch.stack([own, refined, predicted]))) == 4


def test_similarity_examples__of_a_patch_with_itself_is_1(trained: TrainedRun, images: Tensor) -> None:
    found = similarity_examples(trained, {"pretrained": trained.backbone}, images)
    for example, image in zip(found, images, strict=True):
        similarity = example.maps["pretrained"]
        assert similarity.shape == (4, 4)
        assert similarity.flatten()[example.patch] == pytest.approx(1, abs=1e-5)
        assert similarity.min() >= -1.0001
        assert example.patch == contrast(image[None], 4).argmax()


def test_neighbour_examples__nearest_first(trained: TrainedRun) -> None:
    probe = open_probe(trained.config)
    assert probe is not None
    size = len(probe.gallery.labels)
    # a query of class c looks exactly like images of the other class
    gallery = torch.eye(2)[probe.gallery.labels] + 0.01 * torch.rand(
        size, 2, generator=torch.Generator().manual_seed(0)
    )
    features = {"wrong": Features(gallery, torch.eye(2)[1 - probe.queries.labels])}
    found = neighbour_examples(probe, features, ["disc", "square"], seed=0, num_queries=8, count=6)
    assert [example.class_name for example in found] == ["disc", "square"]
    for example in found:
        assert len(example.nearest["wrong"]) == 6
        assert not any(near.is_right for near in example.nearest["wrong"])
        assert {near.class_name for near in example.nearest["wrong"]} == {"disc", "square"} - {example.class_name}


def test_neighbour_examples__take_at_most_so_many_classes(trained: TrainedRun) -> None:
    probe = open_probe(trained.config)
    assert probe is not None
    features = {"same": Features(torch.ones(len(probe.gallery.labels), 2), torch.ones(len(probe.queries.labels), 2))}
    (example,) = neighbour_examples(probe, features, ["disc", "square"], seed=0, num_queries=1, count=100)
    assert len(example.nearest["same"]) == len(probe.gallery.labels)


def test_image_at__counts_through_batches(trained: TrainedRun) -> None:
    probe = open_probe(trained.config)
    assert probe is not None
    pixels = torch.cat(probe.gallery.pixels)
    split = probe.gallery._replace(pixels=list(pixels.split(7)))
    assert all(np.array_equal(image_at(split, i), pixels[i]) for i in (0, 6, 7, 39))
    with pytest.raises(IndexError):
        image_at(split, 40)


def test_contrast__of_patches() -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[0, :, 4:, ::2] = 200
    found = contrast(image, 4)
    assert found[0, :2].tolist() == [0, 0]
    assert (found[0, 2:] > 99).all()


def test_tokenizer_of_any_stride() -> None:
    torch.manual_seed(0)
    tokenizer = DiscreteVAE(DiscreteVAEConfig(stride=6, vocab_size=8, dim=8, num_blocks=0)).frozen()
    views = torch.randint(0, 256, (2, 3, 18, 18), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert code_use(tokenizer, views).counts.sum() == 2 * 9
    assert reconstructions(tokenizer, views)[0].shape == (18, 18, 3)
