import io
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from images import photo
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import RandomResizedCrop

import mcbeit.augment as module
from mcbeit import image_files
from mcbeit.augment import Box, CropConfig, View, draw_box, normalise, read_views, two_views
from mcbeit.config import validate
from mcbeit.errors import ConfigError
from mcbeit.preprocess import Preprocess

INTERPOLATIONS = ["bicubic", "bilinear", "lanczos", "nearest"]
WHOLE = CropConfig(scale=(1.0, 1.0), flip=0.0)  # of a square image


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def draw(count: int, height: int, width: int, **config: Any) -> np.ndarray:
    """Boxes as rows of top, left, height, width."""
    rng = generator()
    return np.array([draw_box(height, width, CropConfig(**config), rng) for _ in range(count)])


def pixels(view: Tensor) -> np.ndarray:
    """[height, width, 3], in which differences can be taken."""
    return view.permute(1, 2, 0).numpy().astype(int)


# draw_box


@pytest.mark.parametrize(("height", "width"), [(300, 400), (400, 300), (224, 224), (37, 50)])
def test_draw_box__lies_in_the_image_and_within_the_limits(height: int, width: int) -> None:
    top, left, box_height, box_width = draw(2000, height, width, scale=(0.2, 0.8), aspect=(0.5, 2.0)).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()
    rounding = 0.5 / box_height + 0.5 / box_width
    area, aspect = box_height * box_width / (height * width), box_width / box_height
    assert (area >= 0.2 * (1 - 1.1 * rounding)).all()
    assert (area <= 0.8 * (1 + 1.1 * rounding)).all()
    assert (abs(np.log(aspect)) <= np.log(2.0) + 1.1 * rounding).all()


def test_draw_box__uses_the_whole_range_of_area_aspect_and_place() -> None:
    top, left, height, width = draw(4000, 300, 300).T
    area, aspect = height * width / 300**2, np.log(width / height)
    assert area.min() < 0.09
    assert area.max() > 0.95
    assert abs(aspect.mean()) < 0.01  # upright and lying alike
    assert aspect.min() < -0.28
    assert aspect.max() > 0.28
    small = area < 0.3
    for start, size in ((top, height), (left, width)):
        place = (start / (300 - size).clip(1))[small]
        assert abs(place.mean() - 0.5) < 0.02
        assert place.min() < 0.01
        assert place.max() > 0.99


@pytest.mark.parametrize(("height", "width"), [(300, 400), (100, 300)])
def test_draw_box__areas_and_aspects_are_those_of_torchvision(height: int, width: int) -> None:
    torch.manual_seed(0)
    theirs = RandomResizedCrop(8)
    image = torch.zeros(1, height, width)
    wanted = np.array([tuple(theirs.make_params([image])[key] for key in Box._fields) for _ in range(4000)])
    ours = draw(4000, height, width)
    for column in range(4):
        quantiles = np.quantile(np.stack([wanted[:, column], ours[:, column]]), [0.1, 0.3, 0.5, 0.7, 0.9], axis=1)
        assert abs(quantiles[:, 0] - quantiles[:, 1]).max() < 0.035 * (height, width, height, width)[column]


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((1, 1000), Box(0, 499, 1, 1)),
        ((1000, 1), Box(499, 0, 1, 1)),
        ((100, 1000), Box(0, 433, 100, 133)),
        ((1000, 100), Box(433, 0, 133, 100)),
        ((64, 64), Box(0, 0, 64, 64)),
        ((1, 1), Box(0, 0, 1, 1)),
    ],
)
def test_draw_box__where_nothing_fits_it_is_the_largest_in_the_middle(size: tuple[int, int], wanted: Box) -> None:
    assert draw_box(*size, WHOLE, generator()) == wanted


# two_views


class Seen(NamedTuple):
    """Which part of a ramp a view shows, in pixels of the ramp."""

    centre_row: float
    centre_column: float
    height: float
    width: float
    flipped: bool


def ramp(height: int, width: int) -> Image.Image:
    """Red counts the columns and green the rows, so that a view of it tells where it was taken."""
    red, green = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=-1).astype(np.uint8))


def look(view: Tensor) -> Seen:
    size = view.shape[1]
    inner = np.arange(size // 8, size - size // 8)  # at the borders, an enlarged ramp is flat
    rows, columns = view[1].double().mean(dim=1).numpy(), view[0].double().mean(dim=0).numpy()
    slopes = [np.polyfit(inner, line[inner], 1)[0] for line in (rows, columns)]
    height, width = (abs(slope) * size for slope in slopes)
    return Seen(rows.mean(), columns.mean(), height, width, bool(slopes[1] < 0))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_two_views__both_show_the_same_crop_and_flip(interpolation: Any) -> None:
    image, views = ramp(200, 250), (View(64, "bicubic"), View(32, interpolation))
    flips = []
    for seed in range(30):
        first, second = (look(view) for view in two_views(image, CropConfig(), views, generator(seed)))
        assert first[:4] == pytest.approx(second[:4], abs=2.5)
        assert first.flipped == second.flipped
        box = draw_box(200, 250, CropConfig(), generator(seed))  # the first thing that is drawn
        centre = box.top + (box.height - 1) / 2, box.left + (box.width - 1) / 2
        assert first[:4] == pytest.approx((*centre, box.height, box.width), abs=2)
        flips.append(first.flipped)
    assert set(flips) == {True, False}


@pytest.mark.parametrize(("flip", "wanted"), [(0.0, 0), (1.0, 400), (0.25, 100)])
def test_two_views__are_flipped_with_the_given_probability(flip: float, wanted: int) -> None:
    image, rng, views = ramp(9, 9), generator(), (View(8, "bilinear"),)
    config = CropConfig(scale=(0.9, 1.0), flip=flip)
    flipped = sum(look(two_views(image, config, views, rng)[0]).flipped for _ in range(400))
    assert abs(flipped - wanted) <= 100 * flip * (1 - flip)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", [(5, 9), (40, 30), (1, 200), (64, 64)])
def test_two_views__have_the_sizes_asked_for(interpolation: Any, shape: tuple[int, int]) -> None:
    views = tuple(View(size, interpolation) for size in (64, 1, 17))
    rendered = two_views(Image.fromarray(photo(*shape)), CropConfig(), views, generator())
    assert [view.shape for view in rendered] == [(3, 64, 64), (3, 1, 1), (3, 17, 17)]
    assert {view.dtype for view in rendered} == {torch.uint8}


def test_two_views__a_generator_gives_the_same_views_again() -> None:
    image, views = Image.fromarray(photo()), (View(16, "bicubic"), View(8, "lanczos"))
    config = CropConfig(color_jitter=0.4)
    first, again, other = (two_views(image, config, views, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    (alone,) = two_views(image, config, views[:1], generator(1))
    assert torch.equal(alone, first[0])  # a further view does not change the others
    assert np.array_equal(image, photo())


def test_color_jitter__changes_both_views_alike() -> None:
    image, views = Image.new("RGB", (40, 40), (200, 100, 50)), (View(16, "bicubic"), View(8, "lanczos"))
    colours = set()
    for seed in range(10):
        first, second = two_views(image, CropConfig(color_jitter=0.4), views, generator(seed))
        (colour,) = {tuple(pixel) for view in (first, second) for pixel in pixels(view).reshape(-1, 3)}
        colours.add(colour)
    assert len(colours) == 10
    (plain, _) = two_views(image, CropConfig(), views, generator())
    assert (pixels(plain) == (200, 100, 50)).all()


def test_color_jitter__comes_in_any_order(monkeypatch) -> None:
    orders = set()
    for seed in range(40):
        order: list[str] = []
        for name in ("adjust_brightness", "adjust_contrast", "adjust_saturation"):
            monkeypatch.setattr(module, name, lambda image, _, name=name, order=order: order.append(name) or image)
        two_views(Image.new("RGB", (8, 8)), CropConfig(color_jitter=0.4), (View(4, "bilinear"),), generator(seed))
        orders.add(tuple(order))
    assert len(orders) == 6


def test_color_jitter__stays_within_its_strength() -> None:
    """A grey image has no saturation and a flat one no contrast, so what remains is the brightness."""
    rng = generator()
    levels = [
        int(
            two_views(Image.new("RGB", (8, 8), (100,) * 3), CropConfig(color_jitter=0.4), (View(4, "bilinear"),), rng)[
                0
            ][0, 0, 0]
        )
        for _ in range(300)
    ]
    assert 60 <= min(levels) < 65
    assert 135 < max(levels) <= 140


# read_views


def jpeg(width: int, height: int, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo(height, width)).resize((width, height)).save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


def decoded_sizes(monkeypatch, data: bytes, config: CropConfig, seeds: range) -> set[tuple[int, int]]:
    """At which sizes a file is decoded for its crops."""
    sizes, to_rgb = set(), image_files.to_rgb
    monkeypatch.setattr(image_files, "to_rgb", lambda image: sizes.add(image.size) or to_rgb(image))
    for seed in seeds:
        read_views(data, config, (View(16, "bicubic"), View(8, "lanczos")), generator(seed))
    return sizes


def test_read_views__decode_a_large_jpeg_no_finer_than_its_crop_needs(monkeypatch) -> None:
    whole = CropConfig(scale=(1.0, 1.0), aspect=(4 / 3, 4 / 3))
    assert decoded_sizes(monkeypatch, jpeg(640, 480), whole, range(3)) == {(80, 60)}
    assert decoded_sizes(monkeypatch, jpeg(160, 120), whole, range(3)) == {(80, 60)}
    assert decoded_sizes(monkeypatch, jpeg(80, 60), whole, range(3)) == {(80, 60)}
    some = decoded_sizes(monkeypatch, jpeg(640, 480), CropConfig(scale=(0.005, 1.0)), range(60))
    assert some == {(640, 480), (320, 240), (160, 120), (80, 60)}


def test_read_views__of_a_small_file_are_the_two_views_of_its_image() -> None:
    data, views = jpeg(60, 48), (View(16, "bicubic"), View(8, "lanczos"))
    for seed in range(5):
        found = read_views(data, CropConfig(color_jitter=0.2), views, generator(seed))
        wanted = two_views(image_files.decode(data), CropConfig(color_jitter=0.2), views, generator(seed))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_read_views__of_a_large_jpeg_are_nearly_those_of_all_its_pixels(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = Image.fromarray(photo(12, 16)).resize((1600, 1200), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", quality=92, exif=exif)
    for seed in range(12):
        (found,) = read_views(buffer.getvalue(), CropConfig(), (View(32, "bicubic"),), generator(seed))
        image = image_files.decode(buffer.getvalue())
        (wanted,) = two_views(image, CropConfig(), (View(32, "bicubic"),), generator(seed))
        # not 0: the box is rounded to whole pixels of the smaller image; another crop differs by 30 and more
        assert (found.float() - wanted.float()).abs().mean() < 5


# how far training and evaluation differ


@pytest.mark.parametrize(("interpolation", "mean"), [("bicubic", 0.02), ("lanczos", 0.03), ("bilinear", 0.1)])
def test_two_views__differ_from_preprocess_by_at_most_2_grey_levels(interpolation: Any, mean: float) -> None:
    """torch's resizing of uint8 tensors against PIL's, of whole square images, larger and smaller.

    Measured: 2 at most; on average 0.009 for bicubic, 0.016 for lanczos, 0.07 for bilinear.
    """
    for size in (32, 112, 224):
        preprocess = Preprocess(image_size=size, crop_fraction=1.0, interpolation=interpolation)
        for side in (7, 48, 113, 256, 500):
            image = photo(side, side, seed=side)
            (view,) = two_views(Image.fromarray(image), WHOLE, (View(size, interpolation),), generator())
            difference = np.abs(pixels(view) - preprocess.pixels(image))
            assert difference.max() <= 2
            assert difference.mean() < mean


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("side", [32, 150])
def test_two_views__show_the_pixels_of_pil_at_the_same_place(interpolation: Any, side: int) -> None:
    """A resampling that is off by half a pixel, as torch's "nearest" is, would differ far more."""
    image = Image.fromarray(photo(side, side))
    (view,) = two_views(image, WHOLE, (View(32, interpolation),), generator())
    wanted = np.asarray(image.resize((32, 32), Image.Resampling[interpolation.upper()])).astype(int)
    assert np.abs(pixels(view) - wanted).max() <= (0 if side == 32 or interpolation == "nearest" else 2)


# normalise


@pytest.mark.parametrize("preprocess", [Preprocess(), Preprocess(mean=(0.5, 0.4, 0.0), std=(0.5, 0.1, 1.0))])
def test_normalise__is_that_of_preprocess(preprocess: Preprocess) -> None:
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 16, 16, 3)
    wanted = preprocess.normalise(levels).transpose(0, 3, 1, 2)
    found = normalise(torch.from_numpy(levels).permute(0, 3, 1, 2), preprocess.mean, preprocess.std)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_normalise__rounds_only_the_result(dtype: torch.dtype) -> None:
    image = torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4)
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    assert torch.equal(normalise(image, mean, std, dtype), normalise(image, mean, std).to(dtype))


# the config


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({"scale": [0.5, 0.2]}, "crop.scale must be ordered and within (0, 1], found [0.5, 0.2]"),
        ({"scale": [0, 1]}, "crop.scale must be ordered and within (0, 1], found [0.0, 1.0]"),
        ({"scale": [0.5, 1.5]}, "crop.scale must be ordered and within (0, 1], found [0.5, 1.5]"),
        ({"aspect": [2, 1]}, "crop.aspect must be ordered and positive, found [2.0, 1.0]"),
        ({"aspect": [0, 1]}, "crop.aspect must be ordered and positive, found [0.0, 1.0]"),
        ({"flip": 1.5}, "flip: input should be less than or equal to 1"),
        ({"color_jitter": 1}, "color_jitter: input should be less than 1"),
    ],
)
def test_crop_config__refuses(values: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(CropConfig, values)
    assert wanted in str(error.value)
