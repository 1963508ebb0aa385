"""`mcbeit bench run`: every result on the disk as soon as it is there, features shared, nothing measured in vain."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured import write_colours

from mcbeit.bench.harness import Plan, make_plan, run
from mcbeit.bench.result import Result, read_result, read_results
from mcbeit.bench.tasks import TASKS, knn
from mcbeit.data import DataConfig
from mcbeit.errors import BenchError, ConfigError, Interrupted
from mcbeit.export import ExportConfig, export_model
from mcbeit.stop import StopRequest


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("images") / "colours")


def plan(colours: Path, out: Path, *assignments: str, **changes: Any) -> Plan:
    """Both tasks on pixels, in their smallest form."""
    given = {
        "tasks": ["knn,logreg"],
        "models": ["pixels"],
        "data": [f"colours={colours}"],
        "preset": "smoke",
        **changes,
    }
    return make_plan(
        given["tasks"], given["models"], given["data"], preset=given["preset"], out=out, assignments=assignments
    )


def measure(found: Plan, *, resume: bool = False) -> list[Result]:
    return list(run(found, resume=resume, stop=StopRequest()))


def test_colours_are_told_apart_by_their_pixels(colours: Path, tmp_path: Path) -> None:
    nearest, logistic = measure(plan(colours, tmp_path))
    assert nearest.task.name == "knn"
    assert nearest.metrics[nearest.primary].value == 1.0
    assert logistic.metrics["top1"].value == 1.0
    assert logistic.metrics["top1"].selection == "held-out images"
    assert nearest.data.classes == ("blue", "green", "red")
    assert nearest.confusion == ((4, 0, 0), (0, 4, 0), (0, 0, 4))
    assert nearest.data.splits["train"].manifest.num_images == 24
    assert nearest.environment["versions"]["torch"]


def test_results_are_files_that_say_the_same(colours: Path, tmp_path: Path) -> None:
    found = measure(plan(colours, tmp_path))
    assert {result.run_id for result in read_results(tmp_path)} == {result.run_id for result in found}
    assert read_result(tmp_path / "results" / f"{found[0].run_id}.json") == found[0]


def test_tasks_share_their_features_and_so_does_another_command(colours: Path, tmp_path: Path) -> None:
    first, second = measure(plan(colours, tmp_path))
    assert first.images_per_second is not None
    assert second.images_per_second is None
    assert len(list((tmp_path / "features").iterdir())) == 2  # train and val
    (again,) = measure(plan(colours, tmp_path, "knn.k=[3]", tasks=["knn"]))
    assert again.images_per_second is None


def test_what_is_there_is_in_the_way_unless_it_is_resumed(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = measure(plan(colours, tmp_path))
    with pytest.raises(BenchError, match=r"is there already: go on with --resume, or choose another -o"):
        measure(plan(colours, tmp_path))

    def never(*_: Any) -> None:
        raise AssertionError("nothing is measured again")

    monkeypatch.setattr(knn, "nearest", never)
    assert measure(plan(colours, tmp_path), resume=True) == before


def test_what_a_model_reproduces_may_be_said_later(colours: Path, tmp_path: Path) -> None:
    measure(plan(colours, tmp_path))
    found = measure(plan(colours, tmp_path, "reproduces=dino-vit-b"), resume=True)
    assert {result.model.reproduces for result in [*found, *read_results(tmp_path)]} == {"dino-vit-b"}
    assert measure(plan(colours, tmp_path), resume=True) == found


def test_a_folder_that_cannot_be_made_is_one_error(colours: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match=r"vectors cannot be kept in '.*file/out/features': Not a directory; choose"):
        measure(plan(colours, tmp_path / "file" / "out"))


def test_graphs_that_were_rounded_by_other_images_share_nothing(tmp_path: Path) -> None:
    results, colours = [], write_colours(tmp_path / "colours")
    for noise in (25.0, 120.0):
        images = DataConfig(source=str(write_colours(tmp_path / f"noise {noise}", noise=noise)))
        config = ExportConfig(
            weights="random", image_size=(64,), precision="int8", images=images, num_images=8, measure_speed=False
        )
        folder = export_model("timm:test_efficientnet", tmp_path / "model", config, force=True).folder
        results += measure(plan(colours, tmp_path / "out", models=[str(folder)], tasks=["knn"]))
    assert results[0].run_id != results[1].run_id
    assert len(list((tmp_path / "out" / "features").iterdir())) == 4  # train and val of each


def test_damaged_vectors_are_one_error_that_says_what_to_do(colours: Path, tmp_path: Path) -> None:
    measure(plan(colours, tmp_path, tasks=["knn"]))
    (one, _) = (tmp_path / "features").glob("*/vectors.npy")
    one.write_bytes(one.read_bytes()[:1000])
    with pytest.raises(BenchError, match=rf"cannot be used \(.*\); remove '{one.parent}', and go on with --resume"):
        measure(plan(colours, tmp_path, tasks=["logreg"]))


def test_a_stop_keeps_what_is_measured(colours: Path, tmp_path: Path) -> None:
    stop = StopRequest()
    results = run(plan(colours, tmp_path, models=["pixels", "fake"]), resume=False, stop=stop)
    kept = [next(results), next(results)]
    stop.signal = 15
    with pytest.raises(Interrupted, match=r"images are kept; go on with the same command and --resume"):
        next(results)
    assert len(measure(plan(colours, tmp_path, models=["pixels", "fake"]), resume=True)) == 4
    assert {result.run_id for result in kept} <= {result.run_id for result in read_results(tmp_path)}


def test_a_limit_is_recorded_and_draws_by_the_seed(colours: Path, tmp_path: Path) -> None:
    first, _ = measure(plan(colours, tmp_path / "a", "limit=9"))
    again, _ = measure(plan(colours, tmp_path / "b", "limit=9"))
    other, _ = measure(plan(colours, tmp_path / "c", "limit=9", "seed=1"))
    assert first.task.limit == 9
    assert first.data.splits["train"].used.num_used == 9
    assert first.data.splits == again.data.splits
    assert first.data.splits["train"].manifest != other.data.splits["train"].manifest


def test_unreadable_images_are_left_out_and_counted(tmp_path: Path) -> None:
    colours = write_colours(tmp_path / "colours")
    bad = colours / "train" / "green" / "3.png"
    bad.write_bytes(b"no image")
    found, _ = measure(plan(colours, tmp_path / "out", "data.max_corrupt_fraction=0.1"))
    used = found.data.splits["train"].used
    assert (used.num_used, used.num_unreadable) == (23, 1)
    assert used.unreadable == (str(bad),)
    assert found.metrics[found.primary].value == 1.0


def test_other_images_under_the_same_names_are_another_measurement(tmp_path: Path) -> None:
    colours = write_colours(tmp_path / "colours")
    (first,) = measure(plan(colours, tmp_path / "out", tasks=["knn"]))
    write_colours(colours, noise=60.0)
    (second,) = measure(plan(colours, tmp_path / "out", tasks=["knn"]))
    assert first.run_id != second.run_id
    assert second.images_per_second is not None


def test_settings_of_a_task_are_part_of_its_result(colours: Path, tmp_path: Path) -> None:
    (found,) = measure(plan(colours, tmp_path, "knn.k=[1,3]", "knn.temperature=[0.07,0.2]", tasks=["knn"]))
    assert found.task.overrides == ("knn.k=[1,3]", "knn.temperature=[0.07,0.2]")
    assert {"top1, k=1, T=0.07", "top1, k=3, T=0.2", "top1, best setting"} <= set(found.metrics)
    assert found.metrics["top1, best setting"].selection == "best on the test images"
    assert found.primary == "top1, k=1, T=0.07"


def test_more_neighbours_than_images_are_left_out_and_told(colours: Path, tmp_path: Path) -> None:
    (found,) = measure(plan(colours, tmp_path, "knn.k=[5,1000]", tasks=["knn"]))
    assert "k=[1000] left out" in found.remarks[0]
    with pytest.raises(BenchError, match=r"has only 24 images to search"):
        measure(plan(colours, tmp_path, "knn.k=[1000]", tasks=["knn"]))


@pytest.mark.parametrize(
    ("changes", "assignments", "error", "told"),
    [
        ({"tasks": ["knm"]}, (), ConfigError, "there is no task 'knm'; tasks: knn"),
        ({"tasks": [""]}, (), ConfigError, "-t names no task; tasks: knn"),
        ({}, ("knn.k=3",), ConfigError, r"k: input should be a list, such as \[3\]"),
        ({"tasks": ["logreg"]}, ("knn.k=[3]",), ConfigError, "sets the task knn, which is not asked for"),
        ({}, ("knn.q=3",), ConfigError, "the task knn: .*unknown key 'q'"),
        ({}, ("poolin=cls",), ConfigError, "unknown key 'poolin'; did you mean 'pooling'"),
        ({"data": ["colours"]}, (), ConfigError, "is not of the form NAME=PATH"),
        ({"data": ["a=x", "a=y"]}, (), ConfigError, "names 'a' twice"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    colours: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    assignments: tuple[str, ...],
    error: type[Exception],
    told: str,
) -> None:
    with pytest.raises(error, match=rf"(?s){told}"):
        plan(colours, tmp_path, *assignments, **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_every_preset_of_every_task_is_a_config(task: Any) -> None:
    assert set(task.presets) == {"smoke", "short", "paper"}
    for values in task.presets.values():
        task.config.model_validate(values)


def test_the_same_model_gives_the_same_answers_however_it_is_computed(colours: Path, tmp_path: Path) -> None:
    found = measure(plan(colours, tmp_path, "batch_size=5", models=["fake"], tasks=["knn"]))
    again = measure(plan(colours, tmp_path, "batch_size=3", models=["fake"], tasks=["knn"]))
    assert found[0].answers == again[0].answers
    np.testing.assert_array_equal(found[0].confusion, again[0].confusion)
