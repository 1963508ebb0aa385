"""What training does to scenes: sizes, crops, flips, colours, and that images and labels stay together."""

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import write_ade20k

from mcbeit.data import Key, Loaded
from mcbeit.errors import ImageError
from mcbeit.preprocess import Preprocess
from mcbeit.segmentation.label_maps import IGNORED
from mcbeit.segmentation.scene_crops import (
    SceneConfig,
    SceneDataset,
    distort_colors,
    random_crop,
    read_scene,
    scaled_labels,
    scaled_pixels,
)
from mcbeit.segmentation.scenes import open_scenes


@pytest.mark.parametrize(
    ("size", "factor", "expected"),
    [
        ((683, 1024), 1.0, (512, 768)),  # by the short side
        ((100, 800), 1.0, (256, 2048)),  # by the long side: more than four times as long as high
        ((512, 512), 2.0, (1024, 1024)),
        ((1024, 683), 0.5, (384, 256)),
    ],
)
def test_scene_size__keeps_the_aspect(size: tuple[int, int], factor: float, expected: tuple[int, int]) -> None:
    assert SceneConfig().size_at(*size, factor) == expected


def test_random_crop__moves_labels_with_the_image() -> None:
    config = SceneConfig(long_side=400, short_side=100, scale=(1.0, 1.0), max_class_share=1.0)
    labels = np.random.default_rng(0).integers(0, 200, (100, 130)).astype(np.uint8)
    pixels = np.repeat(labels[:, :, None], 3, axis=2)  # an image that shows its labels
    flipped = set()
    for seed in range(12):
        image, map_ = random_crop(pixels, labels, 64, config, np.random.default_rng(seed))
        assert image.shape == (64, 64, 3)
        assert np.array_equal(image[..., 0], map_)
        flipped.add(any(np.array_equal(map_[0], row[i : i + 64]) for row in labels for i in range(67)))
    assert flipped == {False, True}


def test_random_crop__draws_again_while_one_class_fills_it() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 1
    labels[:8] = IGNORED  # counts for nothing
    pixels = np.zeros((64, 64, 3), np.uint8)
    shares = {}
    for most in (0.75, 1.0):
        config = SceneConfig(long_side=64, short_side=64, scale=(1.0, 1.0), max_class_share=most)
        found = [random_crop(pixels, labels, 16, config, np.random.default_rng(seed))[1] for seed in range(60)]
        counts = [np.bincount(one[one != IGNORED], minlength=2) for one in found if (one != IGNORED).any()]
        shares[most] = np.mean([count.max() / count.sum() for count in counts])
    assert shares[0.75] < 0.8 < 0.85 < shares[1.0]


def test_random_crop__smaller_images_stay_whole() -> None:
    config = SceneConfig(long_side=20, short_side=20, scale=(1.0, 1.0), max_class_share=1.0)
    pixels, labels = np.full((10, 20, 3), 255, np.uint8), np.zeros((10, 20), np.uint8)
    image, map_ = random_crop(pixels, labels, 32, config, np.random.default_rng(0))
    assert image.shape == (10, 20, 3)
    assert map_.shape == (10, 20)


def test_scaled__images_bilinearly_and_labels_to_the_nearest() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[:, 1] = 100
    assert scaled_pixels(pixels, 2, 4)[0, :, 0].tolist() == [0, 25, 75, 100]  # pixel centres aligned
    labels = np.array([[3, 9], [3, 9]], np.uint8)
    assert scaled_labels(labels, 2, 4).tolist() == [[3, 3, 9, 9]] * 2
    wide = np.zeros((1, 8, 3), np.uint8)
    wide[0, 3] = 80  # without antialiasing only the nearest two pixels count
    assert scaled_pixels(wide, 1, 2)[0, :, 0].tolist() == [0, 0]


def test_distort_colors__changes_colours_within_bounds_and_often_nothing() -> None:
    pixels = np.random.default_rng(1).integers(60, 190, (16, 16, 3)).astype(np.uint8)
    found = [distort_colors(pixels, np.random.default_rng(seed)) for seed in range(200)]
    same = sum(np.array_equal(one, pixels) for one in found)
    assert 3 <= same <= 30  # one in 16
    means = np.array([one.mean() for one in found])
    assert 30 < means.min() < 110
    assert 140 < means.max() < 230
    grey = np.full((4, 4, 3), 128, np.uint8)
    for seed in range(50):
        one = distort_colors(grey, np.random.default_rng(seed))
        assert (one == one[..., :1]).all()  # hue and saturation of grey are nothing


def test_distort_colors__of_hue_turns_red_by_at_most_36_degrees() -> None:
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 200
    for seed in range(100):
        one = Image.fromarray(distort_colors(red, np.random.default_rng(seed))).convert("HSV")
        hue = np.asarray(one)[0, 0, 0] / 256 * 360
        assert min(hue, 360 - hue) <= 37.5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> SceneDataset:
    source = open_scenes(write_ade20k(tmp_path_factory.mktemp("scenes") / "ade")).train
    scenes = SceneConfig(long_side=160, short_side=20, scale=(0.5, 2.0))
    return SceneDataset(source, seed=3, scenes=scenes, preprocess=Preprocess(image_size=32), num_dice=2)


def test_dataset__gives_normalised_crops_with_labels(dataset: SceneDataset) -> None:
    padded = 0
    for image in range(8):
        sample = dataset[Key(0, image)]
        view, labels = sample.views
        assert view.shape == (3, 32, 32)
        assert view.dtype == torch.float32
        assert labels.shape == (1, 32, 32)
        assert set(labels.unique().tolist()) <= {0, 1, 2, IGNORED}
        if bool((view[:, -1] == 0).all()):  # the bottom row is padding, exactly 0 after normalising
            padded += 1
            assert bool((labels[:, -1] == IGNORED).all())
    assert padded > 0


def test_dataset__is_a_function_of_seed_epoch_and_image(dataset: SceneDataset) -> None:
    one, again, later = dataset[Key(0, 1)], dataset[Key(0, 1)], dataset[Key(1, 1)]
    assert all(torch.equal(a, b) for a, b in zip(one.views, again.views, strict=True))
    assert not torch.equal(one.views[0], later.views[0])


def test_read_scene__refuses_a_label_map_of_another_size(tmp_path) -> None:
    root = write_ade20k(tmp_path / "ade", train=2)
    Image.new("L", (40, 48), 1).save(root / "annotations" / "training" / "ADE_train_00000001.png")
    source = open_scenes(root).train
    with pytest.raises(ImageError, match=r"image has 48 x 40 pixels, its label map 40 x 48 .*ADE_train_00000001.png"):
        read_scene(source, 0)
    data = SceneDataset(source, seed=0, scenes=SceneConfig(), preprocess=Preprocess(image_size=32))
    sample = data[Key(0, 0)]
    assert (sample.image, sample.corrupt[0].image) == (1, 0)  # replaced, and reported
    assert isinstance(data.load(1, np.random.default_rng(0)), Loaded)
