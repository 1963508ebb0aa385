from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from images import encode, photo, write_images
from tiny import write_planes

from mcbeit.channel_stats import BLOCK, combine, measure_channels, moments
from mcbeit.cli.main import cli
from mcbeit.config import validate
from mcbeit.data import DataConfig
from mcbeit.errors import DataError
from mcbeit.pretrain import PretrainConfig


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["data", "stats", *arguments, "data.num_workers=0"])


def test_measure_channels__is_the_mean_and_deviation_of_all_pixels(tmp_path) -> None:
    images = [photo(20, 30), photo(50, 10, seed=1)]
    write_images(tmp_path, {f"{i}.png": encode(image) for i, image in enumerate(images)} | {"bad.png": b"bad"})
    found = measure_channels(DataConfig(source=str(tmp_path), num_workers=0))
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.low, pixels.min(axis=0))
    np.testing.assert_allclose(found.high, pixels.max(axis=0))
    assert (found.num_images, found.num_unreadable) == (2, 1)


def test_measure_channels__of_five_channels_in_any_number_of_processes(tmp_path) -> None:
    source = write_planes(tmp_path)
    one = measure_channels(DataConfig(source=str(source), channels=5, num_workers=0))
    assert len(one.mean) == len(one.std) == 5
    assert one == measure_channels(DataConfig(source=str(source), channels=5, num_workers=2))


def test_measure_channels__of_some_images(tmp_path) -> None:
    config = DataConfig(source=str(write_planes(tmp_path)), channels=5, num_workers=0)
    some = measure_channels(config, num_images=6)
    assert some.num_images == 6
    assert some == measure_channels(config, num_images=6)
    assert some.mean != measure_channels(config, num_images=6, seed=1).mean


def test_measure_channels__without_a_readable_image_is_an_error(tmp_path) -> None:
    write_images(tmp_path, {"bad.png": b"bad"})
    with pytest.raises(DataError, match=r"none of 1 images such as '.*bad\.png' can be read: not a JPEG"):
        measure_channels(DataConfig(source=str(tmp_path), num_workers=0))


def test_moments__keep_their_digits_far_from_0() -> None:
    """A sum of squares would have lost them all."""
    values = np.random.default_rng(0).normal(size=(BLOCK // 200, 201, 1)) + 1e9
    found = moments(values)
    assert found.num_pixels == values.size
    assert np.sqrt(found.squares / values.size) == pytest.approx(values.std(), rel=1e-6)


@given(st.integers(1, 30), st.integers(1, 30))
def test_combine__is_the_moments_of_both(first: int, second: int) -> None:
    values = np.random.default_rng(first).normal(5, 3, (1, first + second, 2)).astype(np.float32)
    found = combine(moments(values[:, :first]), moments(values[:, first:]))
    for one, other in zip(found, moments(values), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_data_stats__prints_lines_that_a_config_takes(tmp_path) -> None:
    source = write_planes(tmp_path)
    result = run(str(source), "data.channels=5")
    assert result.exit_code == 0
    values = yaml.safe_load(result.stdout)
    assert values["data"] == {"channels": 5}
    config = validate(PretrainConfig, {**values, "tokenizer": {"kind": "dvae"}})
    assert config.preprocess.channels == 5
    assert "stats 24/24" in result.stderr
    assert yaml.safe_load(run(str(source), "data.channels=5", "--images", "3").stdout) != values


def test_data_stats__of_a_constant_channel_gives_a_deviation_that_a_config_takes(tmp_path) -> None:
    np.save(tmp_path / "x.npy", np.stack([np.eye(8), np.ones((8, 8))]))
    result = run(str(tmp_path), "data.channels=2")
    assert "# channel 1 (from 0 on) is the same everywhere" in result.stdout
    assert yaml.safe_load(result.stdout)["preprocess"]["std"] == [pytest.approx(0.330719), 1]


def test_data_stats__of_the_wrong_number_of_channels_is_an_error(tmp_path: Path) -> None:
    result = run(str(write_planes(tmp_path, count=2)), "data.channels=4")
    assert result.exit_code == 2
    assert "none of 2 images" in result.stderr
    assert "no axis has data.channels=4" in result.stderr
