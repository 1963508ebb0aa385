import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from images import (
    good_images,
    photo,
    write_images,
)
from PIL import Image
from torchvision.transforms import InterpolationMode, transforms, v2

from mcbeit.config import validate
from mcbeit.errors import ConfigError, ImageError
from mcbeit.preprocess import Preprocess

GOOD = good_images()
RGB = Image.fromarray(photo())


def torchvision_pixels(image: Image.Image, *, short: int, size: int, interpolation: str = "bicubic") -> np.ndarray:
    mode = InterpolationMode(interpolation)
    return np.asarray(transforms.Compose([transforms.Resize(short, mode), transforms.CenterCrop(size)])(image))


@pytest.mark.parametrize(
    ("height", "width"), [(48, 64), (64, 48), (333, 500), (257, 301), (224, 224), (9, 9), (1, 1), (7, 217), (300, 10)]
)
@pytest.mark.parametrize(("size", "crop_fraction"), [(224, 0.875), (224, 1.0), (50, 0.9)])
def test_pixels__are_those_of_torchvision_on_pil_images(
    height: int, width: int, size: int, crop_fraction: float
) -> None:
    image = Image.fromarray(photo(height, width))
    pixels = Preprocess(image_size=size, crop_fraction=crop_fraction).pixels(image)
    assert (pixels == torchvision_pixels(image, short=int(size / crop_fraction), size=size)).all()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_pixels__of_every_interpolation(interpolation: Any) -> None:
    image = Image.fromarray(photo(150, 200))
    pixels = Preprocess(image_size=64, interpolation=interpolation).pixels(image)
    assert (pixels == torchvision_pixels(image, short=73, size=64, interpolation=interpolation)).all()


def test_pixels__squash_keeps_the_whole_image() -> None:
    pixels = Preprocess(image_size=32, resize="squash", crop_fraction=1).pixels(RGB)
    assert (pixels == np.asarray(RGB.resize((32, 32), Image.Resampling.BICUBIC))).all()


def test_pixels__are_the_same_from_every_source(tmp_path) -> None:
    (path,) = write_images(tmp_path, {"rgb.png": GOOD["rgb.png"]})
    preprocess = Preprocess(image_size=32)
    wanted = preprocess.pixels(RGB)
    assert wanted.shape == (32, 32, 3)
    assert wanted.flags.writeable  # so that torch.from_numpy does not complain
    for source in (path, str(path), GOOD["rgb.png"], photo(), Image.open(path), RGB.copy()):
        assert (preprocess.pixels(source) == wanted).all()


def test_pixels__of_a_pil_image_are_upright_and_on_white() -> None:
    preprocess = Preprocess(image_size=32)
    for name in ("rotated.jpg", "rgba.png", "grey-16-bit.png"):
        assert (preprocess.pixels(Image.open(io.BytesIO(GOOD[name]))) == preprocess.pixels(GOOD[name])).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1000), (1000, 1), (1, 60000), (3, 5000)])
def test_pixels__of_an_extreme_aspect_show_the_middle(height: int, width: int) -> None:
    image, near = np.zeros((height, width, 3), np.uint8), 2 * min(height, width)
    image[max(height // 2 - near, 0) : height // 2 + near, max(width // 2 - near, 0) : width // 2 + near] = 200
    assert (Preprocess(image_size=32).pixels(image) == 200).all()


def test_pixels__refuses_an_image_without_pixels() -> None:
    with pytest.raises(ImageError, match="no pixels: width 0, height 5"):
        Preprocess().pixels(Image.new("RGB", (0, 5)))


def test_pixels__differ_from_the_tensor_resize_of_torchvision_by_at_most_2_grey_levels_when_reducing() -> None:
    """PIL against v2 on uint8 tensors, bicubic, antialias: measured max 2, mean 0.003, 0.3 % of the values differ.

    Without AVX2 torchvision resizes in float, without PIL's clipping between the two passes: max 7, mean 0.13.
    """
    in_uint8 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    preprocess = Preprocess(image_size=112, crop_fraction=1)
    differences = []
    for height, width in [(113, 150), (150, 200), (333, 500), (480, 640)]:
        image = photo(height, width)
        by_tensor = v2.Compose([v2.Resize(112, InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(112)])(
            torch.from_numpy(image).permute(2, 0, 1)
        )
        differences.append(np.abs(by_tensor.permute(1, 2, 0).numpy().astype(int) - preprocess.pixels(image)))
    assert np.max(differences) <= (2 if in_uint8 else 10)
    assert np.mean(differences) < (0.01 if in_uint8 else 0.3)


def test_normalise__is_that_of_torchvision_to_the_bit() -> None:
    preprocess = Preprocess(image_size=32, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    pixels = preprocess.pixels(RGB)
    by_torchvision = transforms.Compose([transforms.ToTensor(), transforms.Normalize(preprocess.mean, preprocess.std)])
    normalised = preprocess.normalise(pixels)
    assert normalised.dtype == np.float32
    assert (normalised == by_torchvision(pixels).permute(1, 2, 0).numpy()).all()
    assert (preprocess.normalise(np.stack([pixels, pixels])) == normalised).all()


def test_normalise__values_by_hand() -> None:
    white = Preprocess().normalise(np.full((1, 1, 3), 255, np.uint8))
    np.testing.assert_allclose(white[0, 0], [2.2489, 2.4286, 2.64], atol=1e-4)


def test_preprocess__repeats_itself() -> None:
    preprocess = Preprocess(image_size=64)
    first, second = (preprocess.pixels(GOOD["rgb.jpg"]) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_preprocess__survives_the_manifest() -> None:
    preprocess = Preprocess(image_size=384, crop_fraction=1.0, interpolation="bilinear", mean=(0.5, 0.5, 0.5))
    assert Preprocess.model_validate_json(preprocess.model_dump_json()) == preprocess


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resize": "squash"}, "set crop_fraction to 1, found 0.875"),
        ({"image_size": 0}, "image_size: input should be greater than or equal to 1"),
        ({"crop_fraction": 1.5}, "crop_fraction: input should be less than or equal to 1"),
        ({"std": [0, 1, 1]}, "std.0: input should be greater than 0"),
        ({"interpolation": "cubic"}, "interpolation: input should be 'bicubic', 'bilinear', 'lanczos' or 'nearest'"),
        ({"size": 224}, "unknown key 'size'"),
    ],
)
def test_preprocess__refuses_what_makes_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(Preprocess, values)
    assert message in str(error.value)


def test_preprocess__does_not_import_torch() -> None:
    code = "import sys, mcbeit.preprocess; print(sorted({'torch', 'torchvision', 'scipy', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_pixels__never_scales_up_more_than_a_strip_of_32_by_1(monkeypatch) -> None:
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, *rest: sizes.append(size) or resize(image, size, *rest)
    )
    for size in ((2, 5000), (5000, 2)):
        assert Preprocess(image_size=8, crop_fraction=1).pixels(Image.new("RGB", size, "red")).shape == (8, 8, 3)
    assert sizes == [(8, 8 * 32), (8 * 32, 8)]
