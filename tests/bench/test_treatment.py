"""Images before a model's own preprocessing: at a fixed size, corrupted, and in a frame that preprocessing crops."""

from pathlib import Path

import numpy as np
import pytest
from measured import write_colours
from PIL import Image

from mcbeit.bench.treatment import TreatedSource, Treatment
from mcbeit.errors import ImageError
from mcbeit.image_files import decode
from mcbeit.preprocess import Preprocess
from mcbeit.sources import ImageSource
from mcbeit.sources.files import open_imagefolder


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    return open_imagefolder(write_colours(tmp_path / "colours", val=2) / "val")


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(image_size=64),
        Preprocess(image_size=64, crop_fraction=0.9, interpolation="bilinear"),
        Preprocess(image_size=64, crop_fraction=0.95),  # a frame of odd width
        Preprocess(image_size=64, resize="squash", crop_fraction=1.0),
    ],
    ids=["usual", "wider", "odd", "squashed"],
)
def test_a_model_of_the_same_size_sees_just_the_pixels(source: ImageSource, preprocess: Preprocess) -> None:
    treatment = Treatment.before(preprocess, size=64, corruption="gaussian_noise", severity=5)
    seen = preprocess.pixels(TreatedSource(source, treatment).read(1))
    np.testing.assert_array_equal(seen, treatment.pixels(source.read(1), 1))


def test_a_larger_model_sees_the_whole_image_enlarged(tmp_path: Path) -> None:
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:, 32:], halves[:4], halves[-4:] = 255, 128, 128
    Image.fromarray(halves).save(tmp_path / "a.png")
    preprocess = Preprocess(image_size=128)
    treatment = Treatment.before(preprocess)
    seen = preprocess.pixels(TreatedSource(_one(tmp_path), treatment).read(0))[..., 0].astype(int)
    assert seen[16:-16, :56].max() == 0
    assert seen[16:-16, 72:].min() == 255
    assert set(seen[[0, -1]].ravel()) == {128}


def _one(folder: Path) -> ImageSource:
    (folder / "images" / "c").mkdir(parents=True)
    (folder / "a.png").rename(folder / "images" / "c" / "a.png")
    return open_imagefolder(folder / "images")


def test_every_model_sees_the_same_pixels_below_the_frame(source: ImageSource) -> None:
    found = [
        Treatment.before(preprocess, size=48, corruption="fog", severity=2).pixels(source.read(0), 0)
        for preprocess in (Preprocess(image_size=64), Preprocess(image_size=32, crop_fraction=1.0))
    ]
    assert found[0].shape == (48, 48, 3)
    np.testing.assert_array_equal(*found)


def test_without_a_size_the_image_stays_what_it_is(source: ImageSource) -> None:
    treatment = Treatment.before(Preprocess(image_size=28))
    framed = np.asarray(decode(TreatedSource(source, treatment).read(0)))
    assert framed.shape == (18, 18, 3)  # 16 of 28 / 0.875 = 32
    np.testing.assert_array_equal(framed[1:-1, 1:-1], np.asarray(decode(source.read(0))))
    np.testing.assert_array_equal(framed[0, 1:-1], framed[1, 1:-1])


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"severity": 2}, {"corruption": "shot_noise"}, {"size": 40}],
    ids=lambda one: next(iter(one)),
)
def test_everything_that_changes_pixels_changes_what_is_told(source: ImageSource, change: dict[str, int | str]) -> None:
    told = {"size": 32, "corruption": "impulse_noise", "severity": 1, "seed": 0}
    one, same, other = (
        TreatedSource(source, Treatment.before(Preprocess(), **values)) for values in (told, told, told | change)
    )
    assert one.read(0) == same.read(0) != other.read(0)
    assert one.summary() == same.summary() != other.summary()
    assert one.summary()["names_sha256"] != source.summary()["names_sha256"]


def test_every_image_is_corrupted_by_its_own_numbers(source: ImageSource) -> None:
    treatment = Treatment.before(Preprocess(), size=32, corruption="gaussian_noise", severity=3)
    first, second = (treatment.pixels(source.read(0), index) for index in (0, 1))
    assert not np.array_equal(first, second)


def test_names_labels_and_classes_stay(source: ImageSource) -> None:
    treated = TreatedSource(source, Treatment.before(Preprocess(), size=32))
    assert (len(treated), treated.name(3), treated.classes) == (6, source.name(3), ["blue", "green", "red"])
    np.testing.assert_array_equal(treated.labels, source.labels)


def test_what_is_no_image_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match="not a JPEG"):
        TreatedSource(open_imagefolder(tmp_path), Treatment.before(Preprocess(), size=32)).read(0)
