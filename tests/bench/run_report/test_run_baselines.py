"""The comparison of raw pixels, the backbone before and the backbone after its training."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import encode, write_images
from tiny import pretrain_config

from mcbeit.bench.run_report.baselines import (
    MARGINS,
    Comparison,
    Row,
    backbone_features,
    class_names,
    compare,
    open_probe,
    pixel_features,
    random_backbone,
    score,
)
from mcbeit.bench.run_report.trained import load_trained
from mcbeit.device import PRECISIONS
from mcbeit.errors import DataError
from mcbeit.pretrain_setup import PretrainConfig, build
from mcbeit.probe import OnlineProbe, knn_accuracy, linear_accuracy, mean_pooled, recall_at, standardise
from mcbeit.sources import open_source

FP32 = PRECISIONS["fp32"]


def comparison(*, random: float = 0.6, pretrained: float = 0.7) -> Comparison:
    rows = [
        Row(name, 8, value, value, (value,) * 3) for name, value in (("random", random), ("pretrained", pretrained))
    ]
    return Comparison(rows, "train", "val", 50, 100, 0, 2, 0, 6)


def labelled(shapes: Path, **values: Any) -> PretrainConfig:
    return pretrain_config(shapes / "train", shapes / "tokenizer", shapes / "unused", eval=values)


def probe_of(images: list[np.ndarray], tmp_path: Path, size: int) -> OnlineProbe:
    """A probe whose gallery and queries are these images."""
    for name in ("a", "b"):
        write_images(tmp_path / name, {f"{i}.png": encode(image) for i, image in enumerate(images)})
    config = pretrain_config(
        tmp_path,
        "none",
        tmp_path,
        preprocess={"image_size": size, "crop_fraction": 1.0, "interpolation": "nearest"},
        eval={"gallery": str(tmp_path), "queries": str(tmp_path)},
    )
    probe = open_probe(config)
    assert probe is not None
    return probe


def noise(size: int, channels: int) -> list[np.ndarray]:
    """Six images of noise, of 3 channels or of a grey one."""
    values = np.random.default_rng(0).integers(0, 256, (6, size, size, channels), dtype=np.uint8)
    return list(np.repeat(values, 3 // channels, axis=-1))


def test_random_backbone__is_the_backbone_before_step_0(finished: Path, shapes: Path) -> None:
    config = load_trained(finished).config
    before = build(config, open_source(str(shapes / "train"), "imagefolder")).model.backbone.state_dict()
    found = random_backbone(config.model, config.preprocess.image_size, config.seed).state_dict()
    assert before.keys() == found.keys()
    assert all(torch.equal(before[name], found[name]) for name in before)


def test_random_backbone__is_drawn_by_the_seed_and_draws_from_nobody(shapes: Path) -> None:
    state = torch.get_rng_state()
    config = labelled(shapes)
    first, second = (random_backbone(config.model, config.preprocess.image_size, seed) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.patch_embed.proj.weight, second.patch_embed.proj.weight)


def test_compare__says_what_the_probe_says(finished: Path) -> None:
    run = load_trained(finished)
    probe = open_probe(run.config)
    assert probe is not None
    features = {"pretrained": backbone_features(run.backbone, probe, run.config.preprocess, FP32)}
    found = compare(run.config, probe, features, step=run.step)
    gallery, queries = standardise(
        *(mean_pooled(run.backbone, s.pixels, run.config.preprocess, FP32) for s in (probe.gallery, probe.queries))
    )
    sets = (gallery, probe.gallery.labels, queries, probe.queries.labels)
    assert found.rows == [Row("pretrained", 32, knn_accuracy(*sets), linear_accuracy(*sets), tuple(recall_at(*sets)))]
    assert found.row("pretrained").knn == probe.knn(run.backbone, FP32)
    assert (found.num_gallery, found.num_queries, found.num_classes, found.num_skipped) == (40, 24, 2, 0)
    assert (found.gallery, found.queries) == (run.config.data.source, run.config.eval.queries)
    assert (found.seed, found.step) == (0, 10)


def test_compare__tells_of_images_left_out_of_the_gallery(shapes: Path) -> None:
    config = labelled(shapes, every_epochs=1.0)
    probe = open_probe(config)
    assert probe is not None
    found = compare(config, probe, {"pixels": pixel_features(probe)}, step=0)
    assert found.queries == f"{shapes / 'train'}, left out of the gallery"
    assert (found.num_gallery, found.num_queries) == (32, 8)


def test_comparison__error_gain_and_verdict() -> None:
    found = comparison(random=0.5, pretrained=0.64)
    assert found.standard_error(0.64) == pytest.approx(math.sqrt(0.64 * 0.36 / 100))
    assert found.gain("knn") == found.gain("linear") == pytest.approx(0.14)
    assert found.gain("linear", "random") == 0
    assert found.is_met
    assert not comparison(random=0.6, pretrained=0.6 + MARGINS["knn"] - 0.01).is_met


def test_comparison__survives_json() -> None:
    assert Comparison.from_json(asdict(comparison())) == comparison()


def test_open_probe__needs_labels(shapes: Path) -> None:
    assert open_probe(labelled(shapes)) is None
    data = {"source": str(shapes / "train"), "kind": "imagefolder", "num_workers": 0}
    config = pretrain_config(shapes / "train", "none", shapes / "unused", data=data)
    probe = open_probe(config)
    assert probe is not None
    assert len(probe.gallery.labels) == 32
    assert class_names(config) == ["disc", "square"]


def test_open_probe__refuses_what_was_promised_labels(shapes: Path) -> None:
    with pytest.raises(DataError, match="need"):
        open_probe(labelled(shapes, queries=str(shapes / "val"), kind="folder"))


def test_pixel_features__are_the_pixels(tmp_path: Path) -> None:
    images = noise(8, 3)
    probe = probe_of(images, tmp_path, 8)
    expected = torch.from_numpy(np.stack([*images, *images])).permute(0, 3, 1, 2).flatten(1).float() / 255
    found = pixel_features(probe)
    assert torch.allclose(found.gallery, standardise(expected, expected)[0], atol=1e-5)
    assert torch.equal(found.gallery, found.queries)


def test_pixel_features__take_one_channel_of_grey_images(tmp_path: Path) -> None:
    assert pixel_features(probe_of(noise(8, 1), tmp_path, 8)).gallery.shape == (12, 64)


def test_pixel_features__leave_out_pixels_that_never_vary(tmp_path: Path) -> None:
    images = noise(8, 3)
    for image in images:
        image[0] = 255
    assert pixel_features(probe_of(images, tmp_path, 8)).gallery.shape == (12, 3 * 7 * 8)


def test_pixel_features__of_large_images_are_means(tmp_path: Path) -> None:
    images = noise(64, 3)
    found = pixel_features(probe_of(images, tmp_path, 64))
    means = np.stack([*images, *images]).reshape(12, 32, 2, 32, 2, 3).mean(axis=(2, 4)) / 255
    expected = torch.from_numpy(means).float().permute(0, 3, 1, 2).flatten(1)
    assert torch.allclose(found.gallery, standardise(expected, expected)[0], atol=1e-4)


def test_score__of_pixels_that_tell_the_classes(tmp_path: Path) -> None:
    for name, grey in (("dark", 20), ("light", 200)):
        flat = {f"{i}.png": encode(np.full((8, 8, 3), grey + i, np.uint8)) for i in range(20)}
        write_images(tmp_path / "flat" / name, flat)
    config = pretrain_config(
        tmp_path / "flat",
        "none",
        tmp_path,
        preprocess={"image_size": 8, "crop_fraction": 1.0},
        eval={"gallery": str(tmp_path / "flat"), "queries": str(tmp_path / "flat")},
    )
    probe = open_probe(config)
    assert probe is not None
    assert score("pixels", pixel_features(probe), probe) == Row("pixels", 64, 1.0, 1.0, (1.0, 1.0, 1.0))
