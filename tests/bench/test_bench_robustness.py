"""The task `robustness`: clean, corrupted and other images of the same classes, by one classifier."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured import write_colours
from PIL import Image
from serving import serving
from shifted import COLOURS, WNIDS, write_classes, write_corruptions, write_imagenet, write_real

from mcbeit.bench.data import BenchData
from mcbeit.bench.features import FeatureCache
from mcbeit.bench.harness import make_plan, run
from mcbeit.bench.model import BenchModel
from mcbeit.bench.result import Result
from mcbeit.bench.results_page import write_report
from mcbeit.bench.tasks import TASKS
from mcbeit.bench.tasks.robustness import TASK, RobustnessConfig
from mcbeit.bench.verification import verify_folder
from mcbeit.embed_task import StreamConfig
from mcbeit.errors import BenchError, ConfigError, DataError
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.stop import StopRequest

SMALL = ("robustness.size=32", "robustness.k=5")


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("images") / "colours")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_imagenet(tmp_path_factory.mktemp("images") / "imagenet")


def measure(images: Path, out: Path, *assignments: str, **changes: Any) -> Result:
    given = {"tasks": ["robustness"], "models": ["pixels"], "preset": "smoke", **changes}
    found = make_plan(
        given["tasks"], given["models"], [f"images={images}"], preset=given["preset"], out=out,
        assignments=(*SMALL, *assignments),
    )  # fmt: skip
    return list(run(found, resume=False, stop=StopRequest()))[-1]


def of_sets(images: Path, out: Path, *assignments: str) -> Result:
    """Without corruptions of our own."""
    return measure(images, out, "robustness.corruptions=[]", *assignments)


def num_kept(out: Path) -> int:
    return len(list((out / "features").iterdir()))


def test_corrupted_images_are_judged_by_the_classifier_of_clean_ones(colours: Path, tmp_path: Path) -> None:
    found = measure(
        colours, tmp_path, "robustness.corruptions=[gaussian_noise,contrast]", "robustness.severities=[5,1]"
    )
    assert found.primary == "top1, corrupted"
    assert found.metrics["top1, clean"].value == 1.0
    assert found.metrics["top1, clean, at 32 px"].value == 1.0
    assert found.metrics["top1, corrupted, contrast, severity 1"].value == 1.0
    cells = [found.metrics[f"top1, corrupted, contrast, severity {severity}"].value for severity in (1, 5)]
    assert found.metrics["top1, corrupted, contrast"].value == pytest.approx(np.mean(cells))
    assert found.metrics["relative top1, corrupted"].value == found.metrics["top1, corrupted"].value
    assert found.metrics["top1, corrupted"].uncertainty == "bootstrap over images, 1000 draws"
    (grid,) = found.grids
    assert grid.rows == ("gaussian_noise", "contrast", "mean")
    assert grid.columns == ("mean", "relative", "severity 1", "severity 5")
    assert [curve.title for curve in found.curves] == ["noise", "digital"]
    assert len(found.per_class["top1, corrupted"]) == 3
    assert "not ImageNet-C" in found.remarks[-1]
    assert "motion_blur, snow, frost" in found.remarks[-1]


def test_vectors_are_kept_by_corruption_and_severity_and_clean_ones_are_shared(colours: Path, tmp_path: Path) -> None:
    one = "robustness.corruptions=[fog]"
    first = measure(colours, tmp_path, one, tasks=["knn,robustness"])
    assert first.seconds["features"] == 0  # those of knn
    assert num_kept(tmp_path) == 4  # train, val, val at its size, and fog at severity 3
    second = measure(colours, tmp_path, one, "robustness.k=3")
    assert (second.seconds["shifted features"], num_kept(tmp_path)) == (0, 4)
    for number, changed in enumerate(
        ["robustness.severities=[3,4]", "robustness.corruptions=[fog,pixelate]", "robustness.seed=1"], start=5
    ):
        assert measure(colours, tmp_path, one, changed).seconds["shifted features"] > 0
        assert num_kept(tmp_path) == number


def test_as_many_images_are_corrupted_as_are_wanted(colours: Path, tmp_path: Path) -> None:
    one = "robustness.corruptions=[pixelate]"
    found = measure(colours, tmp_path, one, "robustness.num_images=5")
    assert found.metrics["top1, clean"].num_samples == 12
    assert found.metrics["top1, corrupted"].num_samples == found.metrics["top1, clean, at 32 px"].num_samples == 5
    limited = measure(colours, tmp_path, one, "limit=9", "robustness.num_images=11")
    assert limited.metrics["top1, clean"].num_samples == limited.metrics["top1, corrupted"].num_samples == 9


def test_logistic_regression_in_place_of_neighbours(colours: Path, tmp_path: Path) -> None:
    found = measure(
        colours, tmp_path, "robustness.corruptions=[jpeg_compression]", "robustness.classifier=logreg",
        "robustness.logreg.num_strengths=2",
    )  # fmt: skip
    assert found.metrics["top1, corrupted"].value == 1.0
    assert found.remarks[0] == "logistic regression"
    assert found.remarks[1].startswith("C = ")


def test_unreadable_images_are_left_out_everywhere(tmp_path: Path) -> None:
    colours = write_colours(tmp_path / "colours")
    (colours / "val" / "green" / "1.png").write_bytes(b"no image")
    found = measure(colours, tmp_path / "out", "robustness.corruptions=[pixelate,fog]", "data.max_corrupt_fraction=0.2")
    assert found.data.splits["val"].used.num_unreadable == 1
    assert found.metrics["top1, corrupted"].num_samples == 11


def test_a_service_gives_the_answers_of_the_model(tmp_path: Path) -> None:
    colours = write_colours(tmp_path / "colours")
    (colours / "val" / "green" / "1.png").write_bytes(b"no image")
    given = "robustness.corruptions=[gaussian_noise]", "data.max_corrupt_fraction=0.2"
    here = measure(colours, tmp_path / "out", *given, models=["fake"])
    with serving() as client:
        there = measure(colours, tmp_path / "out", *given, models=[str(client.base_url)])
    assert there.metrics == here.metrics
    assert there.metrics["top1, corrupted"].num_samples == 11


def test_a_set_of_some_classes_is_judged_among_these(imagenet: Path, tmp_path: Path) -> None:
    """Yellow is taken for the last class, which ImageNet-A here has not: what is nearest of the others counts."""
    adversarial = write_classes(tmp_path / "a", {WNIDS[1]: COLOURS[3], WNIDS[0]: COLOURS[0]})
    whole = write_classes(tmp_path / "w", {WNIDS[1]: COLOURS[3], WNIDS[0]: COLOURS[0], WNIDS[3]: COLOURS[3]})
    full = write_classes(tmp_path / "f", dict(zip(WNIDS, COLOURS, strict=True)))
    given = f"robustness.sets={{imagenet-a: {adversarial}, whole: {whole}, full: {full}}}"
    found = of_sets(imagenet, tmp_path / "out", given)
    assert found.primary == "top1, imagenet-a"
    assert found.metrics["top1, imagenet-a"].value == 1.0
    assert found.metrics["top1, whole"].value == pytest.approx(2 / 3)
    assert "imagenet-a: 2 of 4 classes, predictions out of these alone" in found.remarks
    assert "full: 4 of 4 classes, predictions out of all" in found.remarks
    assert found.data.splits["imagenet-a"].manifest.num_images == 6
    assert found.data.splits["imagenet-a"].used.num_used == 6


def test_folders_of_numbers_are_classes_in_their_order(imagenet: Path, tmp_path: Path) -> None:
    matched = write_classes(tmp_path / "v2", {str(i): colour for i, colour in enumerate(COLOURS)})
    found = of_sets(imagenet, tmp_path / "out", f"robustness.sets={{imagenet-v2: {matched}}}")
    assert found.metrics["top1, imagenet-v2"].value == 1.0
    told = f"imagenet-v2: 4 of 4 classes, predictions out of all, folder 0 taken for class {WNIDS[0]}"
    assert told in found.remarks


def test_imagenet_c_as_it_is_distributed(imagenet: Path, tmp_path: Path) -> None:
    corrupted = write_corruptions(tmp_path / "c", ["fog", "frost"], wrong_from=4)
    write_corruptions(tmp_path / "c", ["speckle_noise"], wrong_from=1)  # for validation: not in the mean
    found = of_sets(imagenet, tmp_path / "out", f"robustness.sets={{imagenet-c: {corrupted}}}")
    assert found.metrics["top1, imagenet-c, fog, severity 3"].value == 1.0
    assert found.metrics["top1, imagenet-c, frost, severity 4"].value == 0.0
    assert found.metrics["top1, imagenet-c, speckle_noise"].value == 0.0
    assert found.metrics["top1, imagenet-c"].value == pytest.approx(0.6)
    assert found.metrics["top1, imagenet-c"].num_samples == 4
    _, grid = found.grids
    assert (grid.title, grid.rows) == ("imagenet-c", ("fog", "frost", "speckle_noise", "mean"))
    assert found.data.splits["imagenet-c"].manifest.num_images == 60
    assert "imagenet-c: 65 of the 75 parts of ImageNet-C are missing" in found.remarks
    assert "imagenet-c: the mean is without speckle_noise" in found.remarks


def test_images_of_imagenet_c_are_seen_whole(imagenet: Path, tmp_path: Path) -> None:
    """To the rim, which the model's own preprocessing would crop."""
    corrupted = write_corruptions(tmp_path / "c", ["fog"], severities=[1])
    given = "robustness.corruptions=[]", f"robustness.sets={{c: {corrupted}}}", "image_size=16"
    measure(imagenet, tmp_path, *given, models=["fake"])
    file = corrupted / "fog" / "1" / WNIDS[0] / "ILSVRC2012_val_00000001.JPEG"
    (whole,) = FakeEncoder(image_size=16, normalize=False).embed_pixels(np.asarray(Image.open(file))[None])
    found = [np.load(path)[0] for path in (tmp_path / "features").glob("*/vectors.npy")]
    assert sum(np.allclose(vector, whole, atol=1e-5) for vector in found) == 1


def test_verify_looks_at_all_corruptions(imagenet: Path, tmp_path: Path) -> None:
    corrupted = write_corruptions(tmp_path / "c", ["fog", "frost"], severities=[1, 2])
    of_sets(imagenet, tmp_path / "out", f"robustness.sets={{c: {corrupted}}}")
    assert not [one for one in verify_folder(tmp_path / "out") if one.is_wrong]
    next((corrupted / "frost" / "2").rglob("*.JPEG")).write_bytes(b"another")
    assert [one.text for one in verify_folder(tmp_path / "out") if one.is_wrong] == [
        f"its images (c) at '{corrupted}' are others now"
    ]


def test_real_labels_count_every_class_that_an_image_shows(imagenet: Path, tmp_path: Path) -> None:
    right, wrong, several, none = [0], [0], [1, 2], list[int]()
    real = write_real(tmp_path / "real.json", [right, wrong, several, none] * 2)
    found = of_sets(imagenet, tmp_path / "out", f"robustness.real_labels={real}")
    assert found.primary == "top1, ReaL labels"
    assert found.metrics["top1, clean"].value == 1.0
    assert found.metrics["top1, ReaL labels"].value == pytest.approx(2 / 3)
    assert found.metrics["top1, ReaL labels"].num_samples == 6
    assert found.remarks[-1].startswith("ReaL: 6 of 8 validation images have labels (SHA-256 ")


def test_another_set_is_another_measurement_and_verify_looks_at_it(imagenet: Path, tmp_path: Path) -> None:
    numbers = write_classes(tmp_path / "v2", {str(i): colour for i, colour in enumerate(COLOURS)})
    given = f"robustness.sets={{v2: {numbers}}}"
    first = of_sets(imagenet, tmp_path / "out", given)
    assert [finding.text for finding in verify_folder(tmp_path / "out")] == [
        "unchanged, and so are its 24 images (train)",
        "unchanged, and so are its 8 images (val)",
        "unchanged, and so are its 12 images (v2)",
    ]
    write_classes(numbers, {"2": COLOURS[0]})
    assert [finding.text for finding in verify_folder(tmp_path / "out") if finding.is_wrong] == [
        f"its images (v2) at '{numbers}' are others now"
    ]
    assert of_sets(imagenet, tmp_path / "out", given).run_id != first.run_id


def test_another_version_of_the_task_does_not_look_for_its_sets(
    imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = f"robustness.sets={{a: {write_classes(tmp_path / 'a', {WNIDS[0]: COLOURS[0]})}}}"
    of_sets(imagenet, tmp_path / "out", given)
    monkeypatch.setitem(TASKS, "robustness", replace(TASK, version=2))
    found = verify_folder(tmp_path / "out")
    assert not [finding for finding in found if finding.is_wrong]
    assert [finding.text for finding in found] == [
        "measured by version 1, now 2 of the task; measure again to compare",
        "unchanged, and so are its 24 images (train)",
        "unchanged, and so are its 8 images (val)",
        "its images (a) cannot be looked at: robustness, as it is now, does not tell where they are",
    ]
    monkeypatch.delitem(TASKS, "robustness")
    assert len([one for one in verify_folder(tmp_path / "out") if "does not tell where they are" in one.text]) == 3


def test_the_report_has_a_table_of_corruptions(colours: Path, tmp_path: Path) -> None:
    measure(colours, tmp_path, "robustness.corruptions=[gaussian_noise,fog]", "robustness.severities=[1,5]")
    written = write_report(tmp_path)
    lines = written.markdown.read_text().splitlines()
    assert "|  | mean | relative | severity 1 | severity 5 |" in lines
    (noise,) = [line for line in lines if line.startswith("| gaussian_noise |")]
    assert noise.count(" ± ") == 4
    html = written.page.read_text()
    assert "<h3>Corruptions, %</h3>" in html
    assert "<td>gaussian_noise</td>" in html
    assert "top1, corrupted, fog, severity 1" not in html  # it stands in the table alone
    assert "<td>top1, clean, at 32 px</td>" in html


def test_the_report_has_a_number_for_every_set(imagenet: Path, tmp_path: Path) -> None:
    first, second = (write_classes(tmp_path / name, {WNIDS[0]: COLOURS[0]}) for name in ("a", "r"))
    real = write_real(tmp_path / "real.json", [[0], [1], [2], [3]] * 2)
    given = f"robustness.sets={{a: {first}, r: {second}}}"
    measure(imagenet, tmp_path, given, "robustness.corruptions=[pixelate]", f"robustness.real_labels={real}")
    lines = write_report(tmp_path).markdown.read_text().splitlines()
    start = lines.index("Sets of images, percent:")
    rows = [line.split("|")[1].strip() for line in lines[start + 4 : start + 9]]
    assert rows == ["clean", "corrupted", "a", "r", "ReaL labels"]
    assert all("100.00 ± " in line for line in lines[start + 4 : start + 9])


@pytest.mark.parametrize(
    ("assignments", "told"),
    [
        (["robustness.corruptions=[]"], "nothing to measure"),
        (["robustness.corruptions=[snow]"], r"corruptions\.0.*'gaussian_noise'"),
        (["robustness.severities=[6]"], "severities.0: .*less than or equal to 5"),
        (["robustness.sets={corrupted: x}"], "'corrupted' means something else in results; choose another name"),
        (["robustness.sets={ReaL labels: x}"], "'ReaL labels' means something else in results"),
        (["robustness.sets={'c, fog': x}"], "'c, fog' would be a part of a set in results; choose a name without a"),
        (["robustness.logreg.seed=1"], "unknown key 'logreg.seed'"),
    ],
)
def test_wrong_settings_are_told_at_once(colours: Path, tmp_path: Path, assignments: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){told}"):
        measure(colours, tmp_path, *assignments)


def test_a_set_of_other_classes_is_told_before_anything_is_embedded(imagenet: Path, tmp_path: Path) -> None:
    strange = write_classes(tmp_path / "a", {WNIDS[0]: COLOURS[0], "n99999999": COLOURS[1]})
    with pytest.raises(DataError, match=r"1 of 2 folders of '.*' are no classes .* 'n99999999'; expected 'n01440764'"):
        of_sets(imagenet, tmp_path / "out", f"robustness.sets={{imagenet-a: {strange}}}")
    real = write_real(tmp_path / "real.json", [[4]] * 8)
    with pytest.raises(DataError, match="names class 4, and the images have 4 classes"):
        of_sets(imagenet, tmp_path / "out", f"robustness.real_labels={real}")
    real = write_real(tmp_path / "real.json", [[1], [2], [3], [0]] * 2)
    with pytest.raises(DataError, match="of 8 images only 0 show their own"):
        of_sets(imagenet, tmp_path / "out", f"robustness.real_labels={real}", "limit=2")
    assert not (tmp_path / "out" / "features").exists()


def test_a_set_without_training_images_is_told(tmp_path: Path) -> None:
    images = write_imagenet(tmp_path / "imagenet", train=1)
    few = write_classes(tmp_path / "a", {WNIDS[0]: COLOURS[0]})
    with pytest.raises(BenchError, match="imagenet-a: no training image that is used has one of its classes"):
        of_sets(images, tmp_path / "out", f"robustness.sets={{imagenet-a: {few}}}", "limit=2", "seed=2")


def test_images_of_other_channels_are_refused(imagenet: Path) -> None:
    model = BenchModel("fake", StreamConfig(), FeatureCache(imagenet))
    with pytest.raises(BenchError, match=r"is of images of 3 channels, and data\.channels=4"):
        TASK.run(model, BenchData("images", str(imagenet), channels=4), RobustnessConfig())
