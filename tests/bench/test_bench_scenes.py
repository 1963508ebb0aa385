"""Tasks on scenes with label maps: a linear layer and neighbours of frozen features, and UperNet."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import backbone, save_backbone
from click.testing import CliRunner
from measured_scenes import model_of, settings
from PIL import Image
from scenes import CLASSES, write_ade20k
from serving import serving

from mcbeit.bench.data import BenchData
from mcbeit.bench.result import read_results
from mcbeit.bench.results_page import write_report
from mcbeit.bench.tasks import segmentation, segmentation_knn, segmentation_linear
from mcbeit.bench.tasks.scene_scores import class_colour, scene_metrics
from mcbeit.bench.tasks.scene_windows import FrozenEncoder, SceneTaskConfig, patch_shares, window_batches
from mcbeit.bench.tasks.task import Outcome
from mcbeit.cli.main import cli
from mcbeit.config import validate
from mcbeit.encoder import load_encoder
from mcbeit.errors import BenchError, ConfigError, DataError
from mcbeit.export import ExportConfig, export_model
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.segmentation.judging import UNREADABLE
from mcbeit.segmentation.label_maps import IGNORED


@pytest.fixture(scope="module")
def ade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ade20k(tmp_path_factory.mktemp("scenes") / "ade", train=10, val=4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone of 4 blocks, 32 px in 4 x 4 patches."""
    return save_backbone(tmp_path_factory.mktemp("weights") / "w.pth", backbone(depth=4, patch_size=4))


def measure(task: Any, source: Path | str, ade: Path, out: Path, **chosen: Any) -> Outcome:
    data = BenchData("scenes", str(ade)).taken_for("scenes")
    return task.run(model_of(source, out), data, validate(task.TASK.config, chosen))


# what tasks have in common


def test_patch_shares__by_hand() -> None:
    labels = torch.tensor([[[0, 0, 1, IGNORED], [0, 1, 1, IGNORED], [2] * 4, [IGNORED] * 4]], dtype=torch.uint8)
    found = patch_shares(labels, (2, 2), 3)
    assert found[0, 0].tolist() == [[0.75, 0.25, 0.0], [0.0, 1.0, 0.0]]
    assert found[0, 1].tolist() == [[0.0, 0.0, 1.0]] * 2
    assert patch_shares(torch.full((1, 4, 4), IGNORED, dtype=torch.uint8), (2, 2), 3).sum() == 0


def test_window_batches__cover_an_image_with_its_labels() -> None:
    frozen = FrozenEncoder(FakeEncoder(image_size=32), SceneTaskConfig(short_side=40, batch_size=3))
    labels = np.arange(40 * 48, dtype=np.int64).reshape(40, 48).astype(np.uint8)
    pixels = np.repeat(labels[:, :, None], 3, axis=2)
    batches = list(window_batches(pixels, labels, frozen))
    assert [len(windows) for windows, _ in batches] == [3, 1]
    for windows, maps in batches:
        assert torch.equal(windows[:, 0], maps)
    assert torch.equal(batches[1][1][0], torch.from_numpy(labels)[8:, 16:])  # the last one ends at the border


def test_frozen_encoder__small_images_are_padded_with_the_mean_colour() -> None:
    encoder = FakeEncoder(image_size=32)
    frozen = FrozenEncoder(encoder, SceneTaskConfig(short_side=16))
    seen: list[torch.Tensor] = []

    def grids(windows: torch.Tensor) -> torch.Tensor:
        seen.append(windows)
        return FrozenEncoder.grids(frozen, windows)

    frozen.grids = grids  # type: ignore[method-assign]
    found = frozen.find(np.zeros((16, 24, 3), np.uint8), lambda grids: torch.ones(len(grids), 3, 32, 32))
    assert found.shape == (16, 24)
    assert seen[0][0, :, 20, 0].tolist() == [int(255 * mean) for mean in encoder.spec.preprocess.mean]


def test_scene_metrics__leave_out_what_cannot_be_read() -> None:
    each = np.full((3, 3, 2), UNREADABLE)
    each[0] = [[4, 2], [6, 4], [5, 5]]
    each[2] = [[4, 4], [4, 6], [6, 4]]
    found = scene_metrics(each, seed=0)
    assert found["miou"].value == pytest.approx((8 / 13 + 6 / 13) / 2)
    assert found["miou"].num_samples == 2
    low, high = found["miou"].interval or (0, 0)
    assert low <= found["miou"].value <= high


def test_class_colours__differ() -> None:
    assert len({class_colour(number) for number in range(150)}) > 140


# frozen features


def test_linear__learns_from_frozen_features(weights: Path, ade: Path, tmp_path: Path) -> None:
    chosen = {"steps": 80, "warmup_steps": 8, "crops": 4, "lr": 1e-2, "short_side": 40, "max_class_share": 1.0}
    found = measure(segmentation_linear, weights, ade, tmp_path, **chosen)
    assert found.primary == "miou"
    assert found.metrics["pixel accuracy"].value > 0.7
    assert found.used["train"].num_used == 10
    assert found.used["val"].num_used == 4
    assert len(found.per_class["miou"]) == 3
    assert [set(row) for row in found.pictures] == [{"scene", "image", "truth", "found", "classes"}] * 4
    again = measure(segmentation_linear, weights, ade, tmp_path, **chosen)  # the run is there
    assert again.metrics == found.metrics
    assert again.pictures == found.pictures


def test_knn__finds_the_classes_of_training_patches(weights: Path, ade: Path, tmp_path: Path) -> None:
    found = measure(segmentation_knn, weights, ade, tmp_path, k=5, patches=2000, short_side=40)
    assert found.metrics["pixel accuracy"].value > 0.7
    fewer = measure(segmentation_knn, weights, ade, tmp_path, k=5, patches=20, short_side=40)
    assert fewer.remarks == ("20 training patches, k=5, T=0.07",)


def test_knn__of_the_training_scenes_themselves_is_nearly_right(weights: Path, tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "ade", train=3, val=1)
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        source = root / kind / "training" / f"ADE_train_00000001.{suffix}"
        (root / kind / "validation" / f"ADE_val_00000001.{suffix}").write_bytes(source.read_bytes())
    chosen = {"k": 1, "short_side": 32, "stride": 32, "patches": 10_000}
    found = measure(segmentation_knn, weights, root, tmp_path, **chosen)
    assert found.metrics["pixel accuracy"].value > 0.9


def test_knn__refuses_images_without_a_label(weights: Path, tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "ade", train=2, val=1)
    for path in (root / "annotations" / "training").iterdir():
        Image.new("L", (48, 40), 0).save(path)
    with pytest.raises(BenchError, match=r"no training image in .* can be read and has a labelled patch"):
        measure(segmentation_knn, weights, root, tmp_path)


def test_frozen_tasks__refuse_what_gives_no_number(weights: Path, ade: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stride=33 is more than a window, 32 pixels"):
        measure(segmentation_knn, weights, ade, tmp_path, stride=33)
    with pytest.raises(ConfigError, match=r"warmup_steps=1500 must be less than steps=80; set both"):
        measure(segmentation_linear, weights, ade, tmp_path, steps=80)
    with pytest.raises(ConfigError, match=r"scale must be ordered and positive"):
        measure(segmentation_linear, weights, ade, tmp_path, scale=[2.0, 0.5])
    with pytest.raises(BenchError, match=r"segmentation-linear.crops=16, but scenes has only 10 training images"):
        measure(segmentation_linear, weights, ade, tmp_path)
    many = save_backbone(tmp_path / "many.pth", backbone(depth=4, channels=5))
    with pytest.raises(BenchError, match=r"scenes are images of colours, but '.*' sees 5 channels"):
        FrozenEncoder(load_encoder(many), SceneTaskConfig())


@pytest.mark.parametrize("spoil", ["files", "labels"])
def test_knn__refuses_test_scenes_of_which_none_counts(spoil: str, weights: Path, tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "ade", train=2, val=2)
    for path in (root / "images" / "validation").iterdir():
        if spoil == "files":
            path.write_bytes(b"no image")
    for path in (root / "annotations" / "validation").iterdir():
        if spoil == "labels":
            Image.new("L", (48, 40), 0).save(path)
    with pytest.raises(DataError, match=r"none of the 2 test images, such as .* can be read and has a labelled pixel"):
        measure(segmentation_knn, weights, root, tmp_path)


def test_frozen_tasks__give_the_same_of_weights_of_a_graph_and_of_a_service(
    weights: Path, ade: Path, tmp_path: Path
) -> None:
    graph = tmp_path / "graph"
    export_model(weights, graph, validate(ExportConfig, {"num_images": 8, "measure_speed": False}))
    chosen = {"steps": 20, "warmup_steps": 2, "crops": 4, "lr": 1e-2, "short_side": 40}
    with serving(models=(str(graph),)) as service:
        sources = [weights, graph, str(service.base_url)]
        linear = [measure(segmentation_linear, one, ade, tmp_path / "linear", **chosen) for one in sources]
        knn = [measure(segmentation_knn, one, ade, tmp_path / "knn", k=5, short_side=40) for one in sources]
    for found in (linear, knn):
        values = [one.metrics["miou"].value for one in found]
        assert values[1:] == pytest.approx([values[0]] * 2, abs=2e-3)


# all weights


def test_segmentation__takes_recipes_of_another_depth(weights: Path, ade: Path, tmp_path: Path) -> None:
    model, data = model_of(weights, tmp_path), BenchData("scenes", str(ade)).taken_for("scenes")
    for recipe in ("ade20k-upernet-base", "ade20k-upernet-large", "segmentation-demo"):
        config = validate(segmentation.SegmentationTaskConfig, {"recipe": recipe})
        job = segmentation.make_job(model, data, config)
        assert (job.model.shape[1], job.taps) == (4, (0, 1, 2, 3))
    named = validate(segmentation.SegmentationTaskConfig, {"head": {"taps": [0, 1, 1, 3]}})
    with pytest.raises(ConfigError, match=r"head.taps must ascend"):
        segmentation.run(model, data, named)


def test_segmentation__trains_upernet_in_a_run_that_goes_on(weights: Path, ade: Path, tmp_path: Path) -> None:
    found = measure(segmentation, weights, ade, tmp_path, **settings())
    assert set(found.metrics) == {"miou", "pixel accuracy", "mean accuracy", segmentation.BEST}
    assert found.metrics[segmentation.BEST].selection == "best on the test images"
    (run,) = (tmp_path / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert found.metrics["miou"].value == summary["judged"]["last"]["mean_iou"]
    assert "UperNet, 3 steps, batch 4" in found.remarks[0]
    assert measure(segmentation, weights, ade, tmp_path, **settings()).metrics == found.metrics
    other = measure(segmentation, weights, ade, tmp_path, **settings(seed=1))
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert other.metrics["miou"].value != found.metrics["miou"].value


# the command


def bench(*words: str) -> Any:
    return CliRunner().invoke(cli, ["bench", *words])


def test_bench__of_scenes_end_to_end(weights: Path, ade: Path, tmp_path: Path) -> None:
    words = ["run", "-t", "segmentation-knn", "-m", str(weights), "--data", f"shapes={ade}", "-o", str(tmp_path)]
    answer = bench(*words, "--preset", "smoke", "limit=3", "data.num_workers=0", "segmentation-knn.k=3")
    assert answer.exit_code == 0, answer.output
    (result,) = read_results(tmp_path)
    assert result.data.classes == CLASSES
    assert result.data.layout == "ade20k"
    assert {name: split.used.num_used for name, split in result.data.splits.items()} == {"train": 3, "val": 3}
    assert all(
        split.manifest.labels_sha256 and split.manifest.num_classes == 3 for split in result.data.splits.values()
    )
    written = write_report(tmp_path)
    page = written.page.read_text()
    assert page.count('<div class="scenes">') == 1
    assert page.count('alt="what was found"') == 3
    assert "miou" in written.markdown.read_text()


def test_bench__of_two_classes_end_to_end(weights: Path, tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "ade", train=4, val=3, classes=("ground", "shape"))
    tasks = "segmentation-knn,segmentation-linear,segmentation"
    words = ["run", "-t", tasks, "-m", str(weights), "--data", f"shapes={root}", "-o", str(tmp_path / "out")]
    upernet = [f"segmentation.{key}={json.dumps(value)}" for key, value in settings().items()]
    linear = [f"segmentation-linear.{one}" for one in ("steps=4", "warmup_steps=1", "crops=4", "short_side=40")]
    answer = bench(*words, "data.num_workers=0", "segmentation-knn.k=3", *linear, *upernet)
    assert answer.exit_code == 0, answer.output
    results = read_results(tmp_path / "out")
    assert {result.task.name for result in results} == set(tasks.split(","))
    for result in results:
        assert result.data.classes == ("ground", "shape")
        assert [len(values) for values in result.per_class.values()] == [2, 2]
        assert result.metrics["miou"].value == pytest.approx(np.mean(result.per_class["miou"]))
    page = write_report(tmp_path / "out").page.read_text()
    assert page.count("<li><span>shape</span>") == 3


def test_bench__names_what_needs_weights(ade: Path, tmp_path: Path) -> None:
    answer = bench("run", "-t", "segmentation", "-m", "fake", "--data", f"s={ade}", "-o", str(tmp_path))
    assert answer.exit_code == 2
    assert "segmentation: not possible with 'fake'" in answer.output
    assert "segmentation-knn, segmentation-linear" in answer.output


def test_bench__refuses_images_without_label_maps(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    words = ["run", "-t", "segmentation-knn", "-m", str(weights), "--data", f"s={tmp_path / 'photos'}"]
    answer = bench(*words, "-o", str(tmp_path / "out"))
    assert answer.exit_code == 2
    assert "is not laid out as images with label maps: it is empty; expected" in answer.output
