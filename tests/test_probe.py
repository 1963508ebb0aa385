from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import broken_images, encode, write_images
from scipy.optimize import minimize
from torch import Tensor

from mcbeit.data import DataConfig
from mcbeit.device import PRECISIONS
from mcbeit.errors import DataError
from mcbeit.preprocess import Preprocess
from mcbeit.probe import (
    EVAL_BATCH,
    EvalConfig,
    Labelled,
    OnlineProbe,
    knn_accuracy,
    linear_accuracy,
    load_labelled,
    mean_pooled,
    pick,
    recall_at,
    standardise,
)
from mcbeit.sources import ImageSource, open_source
from mcbeit.vit import ModelConfig, VisionTransformer

TINY = Preprocess(image_size=16, crop_fraction=1.0)
FP32 = PRECISIONS["fp32"]


def flat(grey: int) -> bytes:
    """An image of one grey level, by which it can be told from all others."""
    return encode(np.full((16, 16, 3), grey, np.uint8))


def greys(images: Labelled) -> list[int]:
    return [int(image[0, 0, 0]) for batch in images.pixels for image in batch]


@pytest.fixture
def folder(tmp_path) -> Path:
    """An ImageFolder: 25 dark images (even levels up to 48) and 25 light ones (from 200 on)."""
    write_images(tmp_path / "photos" / "dark", {f"{i:02}.png": flat(2 * i) for i in range(25)})
    write_images(tmp_path / "photos" / "light", {f"{i:02}.png": flat(200 + 2 * i) for i in range(25)})
    return tmp_path / "photos"


def labelled(folder: Path) -> ImageSource:
    return open_source(str(folder), "imagefolder")


def probe(folder: Path | str, data: DataConfig | None = None, **values: Any) -> OnlineProbe:
    config = EvalConfig(every_epochs=1.0, gallery=str(folder), **values)
    return OnlineProbe(config, data or DataConfig(num_workers=0), TINY, seed=0)


@pytest.fixture(scope="module")
def backbone() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(ModelConfig(dim=16, depth=2, num_heads=2, patch_size=8, drop_path=0.5), image_size=16)


# images


def test_pick__draws_without_replacement_the_same_every_time(folder) -> None:
    source = labelled(folder)
    drawn = pick(source, 20, seed=0)
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert len(drawn) == 20
    assert set(drawn.tolist()) <= set(range(50))
    assert pick(source, 20, seed=0).tolist() == drawn.tolist() != pick(source, 20, seed=1).tolist()


@pytest.mark.parametrize("limit", [None, 50, 51])
def test_pick__all_if_there_are_no_more(limit: int | None, folder) -> None:
    assert pick(labelled(folder), limit, seed=0).tolist() == list(range(50))


def test_load_labelled__gives_the_images_asked_for(folder) -> None:
    images = load_labelled(labelled(folder), np.array([3, 24, 25, 49]), TINY, num_workers=0)
    assert greys(images) == [6, 48, 200, 248]
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.num_skipped == 0
    assert [batch.shape for batch in images.pixels] == [(4, 16, 16, 3)]
    assert images.pixels[0].dtype == torch.uint8


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # as loader processes fork
@pytest.mark.parametrize("num_workers", [0, 1])
def test_load_labelled__leaves_out_what_cannot_be_read(num_workers: int, folder) -> None:
    (folder / "dark" / "00.png").write_bytes(broken_images()["half.png"])
    (folder / "light" / "01.png").unlink()
    (folder / "light" / "01.png").symlink_to(folder / "gone.png")
    images = load_labelled(labelled(folder), np.arange(50), TINY, num_workers=num_workers)
    assert images.num_skipped == 2
    assert greys(images) == [*range(2, 50, 2), 200, *range(204, 250, 2)]
    assert [int(grey >= 200) for grey in greys(images)] == images.labels.tolist()


def test_load_labelled__a_whole_batch_may_be_unreadable(tmp_path) -> None:
    write_images(tmp_path / "a", {f"{i:03}.png": b"" for i in range(EVAL_BATCH)})
    write_images(tmp_path / "b", {"x.png": flat(7)})
    images = load_labelled(labelled(tmp_path), np.arange(EVAL_BATCH + 1), TINY, num_workers=0)
    assert (greys(images), images.labels.tolist(), images.num_skipped) == ([7], [1], EVAL_BATCH)


def test_load_labelled__refuses_images_without_labels_or_pixels(tmp_path) -> None:
    write_images(tmp_path / "a", {"x.png": b"", "y.png": b""})
    with pytest.raises(
        DataError, match=r"a probe needs labels, but images such as '.*x\.png' have none; name an ImageFolder"
    ):
        load_labelled(open_source(str(tmp_path)), np.arange(2), TINY, num_workers=0)
    with pytest.raises(DataError, match=r"none of the 2 images for a probe, such as '.*x\.png', can be read"):
        load_labelled(labelled(tmp_path), np.arange(2), TINY, num_workers=0)


# OnlineProbe


@pytest.mark.parametrize(
    ("limits", "sizes"), [({}, (40, 10)), ({"num_queries": 4}, (46, 4)), ({"num_gallery": 5}, (4, 1))]
)
def test_online_probe__holds_images_out_of_the_gallery(limits: dict[str, int], sizes: tuple[int, int], folder) -> None:
    first, second = probe(folder, **limits), probe(folder, **limits)
    assert (len(greys(first.gallery)), len(greys(first.queries))) == sizes
    assert not set(greys(first.gallery)) & set(greys(first.queries))
    assert greys(first.queries) == greys(second.queries)
    assert [int(grey >= 200) for grey in greys(first.queries)] == first.queries.labels.tolist()


def test_online_probe__takes_queries_of_their_own(folder, tmp_path) -> None:
    write_images(tmp_path / "val" / "dark", {"x.png": flat(1)})
    write_images(tmp_path / "val" / "light", {"x.png": flat(255)})
    found = probe(folder, queries=str(tmp_path / "val"))
    assert len(greys(found.gallery)) == 50
    assert greys(found.queries) == [1, 255]
    assert len(greys(probe(folder, queries=str(tmp_path / "val"), num_gallery=30, num_queries=1).gallery)) == 30


def test_online_probe__the_gallery_may_be_the_training_images(folder) -> None:
    data = DataConfig(source=str(folder), num_workers=0)
    found = OnlineProbe(EvalConfig(every_epochs=1.0), data, TINY, seed=0)
    assert greys(found.gallery) == greys(probe(folder).gallery)


def test_online_probe__queries_may_lack_classes_and_number_them_otherwise(folder, tmp_path) -> None:
    write_images(tmp_path / "val" / "light", {"x.png": flat(250)})  # alone, class 0; class 1 of the gallery
    found = probe(folder, queries=str(tmp_path / "val"))
    assert found.queries.labels.tolist() == [1]
    assert found.num_skipped == 0


def test_online_probe__refuses_before_any_training(folder, tmp_path) -> None:
    write_images(tmp_path / "other" / "dark", {"x.png": flat(1)})
    write_images(tmp_path / "more" / "other", {"x.png": flat(1)})
    with pytest.raises(
        DataError, match=r"eval\.queries='.*more' has classes that the gallery has not, such as 'other'"
    ):
        probe(folder, queries=str(tmp_path / "more"))
    with pytest.raises(DataError, match="a probe needs labels"):
        probe(folder, kind="folder")
    with pytest.raises(DataError, match=r"at least 2 images, but '.*x\.png' is alone"):
        probe(tmp_path / "other")
    with pytest.raises(DataError, match=r"data\.source is not set"):
        OnlineProbe(EvalConfig(every_epochs=1.0), DataConfig(), TINY, seed=0)


def test_online_probe__knn_tells_light_from_dark(folder, backbone) -> None:
    found = probe(folder)
    assert found.knn(backbone, FP32) == 1.0
    found.queries.labels.neg_().add_(1)  # all labels wrong
    assert found.knn(backbone, FP32) == 0.0


# features


def test_mean_pooled__is_the_mean_of_the_patch_tokens(backbone) -> None:
    pixels = torch.randint(256, (5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backbone.train()
    features = mean_pooled(backbone, [pixels[:3], pixels[3:]], TINY, FP32)
    assert backbone.training
    backbone.eval()
    with torch.no_grad():
        tokens = backbone.forward_tokens(torch.from_numpy(TINY.normalise(pixels.numpy())).permute(0, 3, 1, 2))
    assert tokens.shape == (5, 5, 16)
    torch.testing.assert_close(features, tokens[:, 1:].mean(dim=1))
    mean_pooled(backbone, [pixels], TINY, FP32)
    assert not backbone.training


def test_standardise__by_hand() -> None:
    gallery, queries = torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[2.0, 5.0], [4.0, 5.0]])
    first, second = standardise(gallery, queries)
    root = 0.5**0.5
    torch.testing.assert_close(first, torch.tensor([[-root, 0.0], [root, 0.0]]))  # a constant feature stays finite
    torch.testing.assert_close(second, torch.tensor([[0.0, 0.0], [2 * root, 0.0]]))


# accuracies


def overlapping(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of three classes that overlap, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    features = rng.normal(size=(count, 6)) + np.eye(3, 6)[labels] * 1.2
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels)


def knn_by_brute_force(
    gallery: Any, labels: Any, queries: Any, truth: Any, neighbours: int, temperature: float
) -> float:
    gallery, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (gallery, queries))
    hits = 0
    for query, right in zip(queries, truth, strict=True):
        similarity = gallery @ query
        votes: dict[int, float] = {}
        for index in np.argsort(-similarity)[:neighbours]:
            votes[labels[index]] = votes.get(labels[index], 0.0) + np.exp(similarity[index] / temperature)
        hits += max(votes, key=votes.__getitem__) == right
    return hits / len(queries)


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 10.0), (999, 0.07)])
def test_knn_accuracy__against_brute_force(neighbours: int, temperature: float) -> None:
    gallery, queries = overlapping(90, seed=0), overlapping(1100, seed=1)  # more queries than are compared at once
    options = {"num_neighbours": neighbours, "temperature": temperature}
    wanted = knn_by_brute_force(*(x.numpy() for x in (*gallery, *queries)), neighbours, temperature)
    assert 0.4 < wanted < 0.9
    assert knn_accuracy(*gallery, *queries, **options) == wanted


def test_knn_accuracy__an_image_finds_itself_and_an_unknown_class_nothing() -> None:
    features, labels = overlapping(50, seed=0)
    assert knn_accuracy(features, labels, features, labels, num_neighbours=1) == 1.0
    assert knn_accuracy(features, labels, features, labels + 3, num_neighbours=1) == 0.0


def test_linear_accuracy__a_plane_between_two_classes_is_found() -> None:
    features, labels = overlapping(200, seed=0)
    wide = features + 20 * torch.nn.functional.one_hot(labels, 6)
    assert linear_accuracy(wide[:100], labels[:100], wide[100:], labels[100:]) == 1.0


def test_linear_accuracy__features_that_say_nothing_give_the_most_frequent_class() -> None:
    labels = torch.tensor([0, 1, 1, 1, 2])
    assert linear_accuracy(torch.zeros(5, 3), labels, torch.zeros(4, 3), torch.tensor([1, 1, 1, 0])) == 0.75


def test_linear_accuracy__against_the_same_regression_by_scipy() -> None:
    (train, labels), (queries, truth) = overlapping(150, seed=0), overlapping(400, seed=1)
    ones, chosen = np.pad(train.double().numpy(), ((0, 0), (0, 1)), constant_values=1.0), np.eye(3)[labels]

    def loss(flat_weight: np.ndarray) -> float:
        scores = ones @ flat_weight.reshape(3, 7).T
        log_sum = np.log(np.exp(scores).sum(axis=1))
        return float((log_sum - (scores * chosen).sum(axis=1)).mean() + 0.01 * (flat_weight**2).sum())

    weight = minimize(loss, np.zeros(21)).x.reshape(3, 7)
    guess = (np.pad(queries.numpy(), ((0, 0), (0, 1)), constant_values=1.0) @ weight.T).argmax(axis=1)
    wanted = float((guess == truth.numpy()).mean())
    assert 0.5 < wanted < 0.9
    assert linear_accuracy(train, labels, queries, truth, weight_decay=0.01) == pytest.approx(wanted, abs=0.5 / 400)


def test_recall_at__counts_queries_with_their_class_among_the_nearest() -> None:
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 2])
    queries, truth = torch.tensor([[2.0, 0.0], [3.0, 0.05], [1.0, 0.0]]), torch.tensor([0, 1, 2])
    assert recall_at(gallery, labels, queries, truth, counts=(1, 2, 3, 10)) == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1])
    assert recall_at(gallery, labels, queries, truth) == pytest.approx([1 / 3, 1, 1])
