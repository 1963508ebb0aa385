import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mcbeit
from mcbeit import runfolder
from mcbeit.checkpoint import Checkpoint
from mcbeit.config import Config, UserPath, override, validate
from mcbeit.errors import RunError
from mcbeit.metric_log import MetricLog
from mcbeit.runfolder import (
    LogConfig,
    RunConfig,
    RunFolder,
    environment,
    open_run,
    read_records,
    read_summary,
)
from mcbeit.sources import FileSource


class DataPart(Config):
    source: str | None = None
    num_workers: int = 0
    max_corrupt_fraction: float = 0.01


class Example(RunConfig):
    """Sections named like those of the real jobs."""

    job: str = "example"
    run: UserPath = "runs/x"
    data: DataPart = DataPart()
    scale: tuple[float, float] = (0.08, 1.0)


def config(*assignments: str) -> Example:
    return validate(Example, override({}, assignments))


IMAGES = ("a.png", "b.png")


def start(path: Path, *assignments: str, resume: bool = False, images: Sequence[str] = IMAGES) -> RunFolder:
    source = FileSource(path, images)
    return open_run(config(f"run={path}", "seed=3", *assignments), source, resume=resume)


def refusal(path: Path, *assignments: str, resume: bool = False) -> str:
    with pytest.raises(RunError) as error:
        start(path, *assignments, resume=resume)
    return str(error.value)


# open_run


@pytest.mark.parametrize("resume", [False, True])
def test_open_run__writes_config_and_environment_first(resume: bool, tmp_path) -> None:
    run = start(tmp_path / "runs" / "x", "data.source=~/Köln", resume=resume)
    assert run.path == tmp_path / "runs" / "x"
    assert {file.name for file in run.path.iterdir()} == {"config.yaml", "env.json"}
    written = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    assert validate(Example, written) == config(f"run={run.path}", "seed=3", "data.source=~/Köln")
    assert json.loads((run.path / "env.json").read_text())["seed"] == 3
    assert run.records() == []
    assert run.summary() is None
    assert run.checkpoints.steps() == []


def test_open_run__takes_an_empty_folder(tmp_path) -> None:
    start(tmp_path)
    assert (tmp_path / "config.yaml").is_file()


@pytest.mark.parametrize("resume", [False, True])
def test_open_run__what_stopped_before_its_first_step_is_new(resume: bool, tmp_path) -> None:
    start(tmp_path, "scale=[0.1, 1.0]")  # a mistake that was found only afterwards
    start(tmp_path, "scale=[0.3, 1.0]", resume=resume)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["scale"] == [0.3, 1.0]


def test_open_run__what_was_never_saved_may_change_when_it_resumes(tmp_path) -> None:
    start(tmp_path).append({"step": 0, "loss": 7.0})
    start(tmp_path, "scale=[0.3, 1.0]", resume=True, images=["a.png"])
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["scale"] == [0.3, 1.0]


def test_open_run__keeps_the_config_that_a_run_goes_on_with(tmp_path) -> None:
    start(tmp_path).checkpoints.save(Checkpoint(1, {}, {}))
    started = (tmp_path / "env.json").read_text()
    start(tmp_path, "log.every_steps=7", resume=True)
    assert (tmp_path / "env.json").read_text() == started  # where and by what it was begun
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["log"]["every_steps"] == 7


def test_open_run__refuses_to_resume_on_other_images(tmp_path) -> None:
    start(tmp_path).checkpoints.save(Checkpoint(1, {}, {}))
    start(tmp_path, resume=True)
    for images, found in ((["a.png"], 1), (["a.png", "c.png"], 2)):
        with pytest.raises(RunError, match=rf"have changed: 2 images when it began, {found} now, or other names"):
            start(tmp_path, resume=True, images=images)


def test_open_run__says_that_a_config_is_none(tmp_path) -> None:
    start(tmp_path).checkpoints.save(Checkpoint(1, {}, {}))
    (tmp_path / "config.yaml").write_text("")
    assert "holds no config" in refusal(tmp_path, resume=True)


def test_open_run__resumes_only_when_told(tmp_path) -> None:
    start(tmp_path).append({"step": 0, "loss": 7.0})
    before = (tmp_path / "env.json").read_text()
    assert refusal(tmp_path) == (
        f"the run '{tmp_path}' exists already; go on with --resume, or choose another with run=FOLDER"
    )
    assert start(tmp_path, resume=True).records() == [{"step": 0, "loss": 7.0}]
    assert (tmp_path / "env.json").read_text() == before


@pytest.mark.parametrize("resume", [False, True])
def test_open_run__keeps_off_what_is_not_a_run(resume: bool, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    wanted = "choose another with run=FOLDER"
    assert refusal(tmp_path, resume=resume) == f"the folder '{tmp_path}' is not empty and is not a run; {wanted}"
    file = tmp_path / "thesis.tex"
    assert refusal(file, resume=resume) == f"the run folder '{file}' is a file; {wanted}"
    below = file / "runs" / "x"
    assert refusal(below, resume=resume) == f"the run folder '{below}' cannot be written: Not a directory"
    assert {found.name for found in tmp_path.iterdir()} == {"thesis.tex"}


def test_open_run__names_each_changed_key_with_both_values(tmp_path) -> None:
    start(tmp_path, "data.source=a").checkpoints.save(Checkpoint(1, {}, {}))
    assert refusal(tmp_path, "seed=1", "data.source=b", "scale=[0.2,1]", "log.every_steps=9", resume=True) == (
        f"the run '{tmp_path}' cannot be resumed with another config:\n"
        "  data.source: 'a' in the run, 'b' now\n"
        "  scale: [0.08, 1.0] in the run, [0.2, 1.0] now\n"
        "  seed: 3 in the run, 1 now"
    )


def test_open_run__a_key_of_another_version_is_a_change(tmp_path) -> None:
    start(tmp_path).checkpoints.save(Checkpoint(1, {}, {}))
    with (tmp_path / "config.yaml").open("a") as file:
        file.write("momentum: 0.9\n")
    assert refusal(tmp_path, resume=True).endswith("config:\n  momentum: 0.9 in the run, None now")


@pytest.mark.parametrize(
    "assignment",
    [
        "log.every_steps=1",
        "log.tensorboard=false",
        "checkpoint.keep=5",
        "data.num_workers=8",
        "data.max_corrupt_fraction=1",
    ],
)
def test_open_run__what_does_not_change_the_training_may_change(assignment: str, tmp_path) -> None:
    start(tmp_path).checkpoints.save(Checkpoint(1, {}, {}))
    assert start(tmp_path, assignment, resume=True).path == tmp_path


def test_open_run__a_run_may_be_moved(tmp_path) -> None:
    start(tmp_path / "here").checkpoints.save(Checkpoint(1, {}, {}))
    (tmp_path / "here").rename(tmp_path / "there")
    assert start(tmp_path / "there", resume=True).checkpoints.steps() == [1]


# measurements


def test_records__a_line_that_a_crash_cut_off_is_passed_over(tmp_path) -> None:
    run = start(tmp_path)
    run.append({"step": 0, "loss": 7.5})
    run.append({"step": 50, "loss": float("nan")})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 100, "lo')
    first, second = run.records()
    assert first == {"step": 0, "loss": 7.5}
    assert second == {"step": 50, "loss": None}
    assert [record["step"] for record in read_records(tmp_path)] == [0, 50]
    assert list(read_records(tmp_path / "missing")) == []


def test_rewind__forgets_what_will_be_measured_again(tmp_path) -> None:
    run = start(tmp_path)
    for step in (0, 50, 100, 150):
        run.append({"step": step})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 17')
    run.rewind(100)
    assert run.metrics_file.read_text() == '{"step": 0}\n{"step": 50}\n'
    run.append({"step": 100})
    assert [record["step"] for record in run.records()] == [0, 50, 100]
    run.rewind(0)
    assert run.records() == []


def test_rewind__a_new_run_has_its_file_from_the_start(tmp_path) -> None:
    run = start(tmp_path)
    run.rewind(0)
    assert run.metrics_file.read_text() == ""


def test_finish__sums_up_the_run(tmp_path) -> None:
    run = start(tmp_path)
    run.append({"step": 0, "loss": 7.0, "knn_top1": 0.3})
    run.append({"step": 9, "loss": 5.0, "temperature": 1.0})
    run.checkpoints.save(Checkpoint(10, {"model": {"weight": torch.zeros(1)}}, {}))
    run.checkpoints.mark_best(10, "knn_top1", 0.3)
    summary = run.finish({"temperature": 0.1})
    assert summary == {
        "step": 9,
        "loss": 5.0,
        "knn_top1": 0.3,
        "temperature": 0.1,
        "best": {"step": 10, "metric": "knn_top1", "value": 0.3},
    }
    assert start(tmp_path, resume=True).summary() == read_summary(tmp_path) == summary


def test_metric_log__writes_lines_and_tensorboard(tmp_path) -> None:
    run = start(tmp_path)
    with MetricLog(run, LogConfig()) as log:
        log.write({"step": 0, "loss": 7.0, "lr": 0.0})
        log.write({"step": 50, "loss": 6.5})
        assert len(run.records()) == 2  # at once, not when the run ends
    assert run.records() == [{"step": 0, "loss": 7.0, "lr": 0.0}, {"step": 50, "loss": 6.5}]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Tags()["scalars"] == ["loss", "lr"]
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(0, 7.0), (50, 6.5)]
    assert [(event.step, event.value) for event in board.Scalars("lr")] == [(0, 0.0)]


def test_metric_log__tensorboard_may_be_left_out(tmp_path) -> None:
    run = start(tmp_path)
    with MetricLog(run, LogConfig(tensorboard=False)) as log:
        log.write({"step": 0, "loss": 7.0})
    assert run.records() == [{"step": 0, "loss": 7.0}]
    assert not (tmp_path / "tensorboard").exists()


def test_metrics__are_json_even_where_a_number_is_not_finite(tmp_path) -> None:
    run = start(tmp_path)
    run.append({"step": 0, "gradient_norm": float("inf"), "loss": 7.0})
    assert run.records() == [{"step": 0, "gradient_norm": None, "loss": 7.0}]


# environment


def test_environment__tells_what_a_repetition_needs(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mcbeit", "train", "emoji"])
    found: dict[str, Any] = environment(seed=5)
    assert found["mcbeit"] == mcbeit.__version__
    assert found["command"] == ["mcbeit", "train", "emoji"]
    assert found["seed"] == 5
    assert found["machine"]["device"] == "cpu"
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert set(found["versions"]) == {"torch", "torchvision", "timm", "numpy", "pillow", "safetensors"}
    assert json.loads(json.dumps(found)) == found


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *names, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A repository with the package in it, which is where the code claims to run from."""
    (tmp_path / "mcbeit").mkdir()
    (tmp_path / "mcbeit" / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(runfolder.mcbeit, "__file__", str(tmp_path / "mcbeit" / "__init__.py"))
    return tmp_path


def test_environment__names_the_commit_of_a_checkout(checkout) -> None:
    git(checkout, "add", "mcbeit")
    git(checkout, "commit", "-qm", "x")
    assert environment(0)["git"] == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}
    (checkout / "mcbeit" / "__init__.py").write_text("changed = True")
    assert environment(0)["git"] == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": True}


def test_environment__an_installed_package_is_not_of_the_repository_around_it(checkout) -> None:
    """As with a virtual environment inside somebody's project."""
    git(checkout, "commit", "-qm", "x", "--allow-empty")
    assert environment(0)["git"] is None


def test_environment__without_git_there_is_no_commit(checkout, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment(0)["git"] is None


# a full disk, by a quota on the size of files


@pytest.fixture
def quota() -> Iterator[None]:
    """No file of this process may grow beyond 4 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def checkpoint_of(step: int, size: int) -> Checkpoint:
    return Checkpoint(step, {"model": {"weight": torch.zeros(size)}}, {})


def test_save__where_the_disk_is_full_leaves_the_checkpoint_before(tmp_path, quota) -> None:
    run = start(tmp_path)
    run.save(checkpoint_of(1, 10))
    with pytest.raises(
        RunError, match=r"the checkpoint of step 2 cannot be written to .*; make room or mend the folder"
    ):
        run.save(checkpoint_of(2, 10_000))
    assert run.checkpoints.steps() == [1]
    assert run.checkpoints.newest().step == 1
    assert [path.name for path in run.checkpoints.path.iterdir()] == ["step-00000001"]


def test_append__where_the_disk_is_full_says_so(tmp_path, quota) -> None:
    run = start(tmp_path)

    def fill() -> None:
        for step in range(1000):
            run.append({"step": step, "loss": 1.0})

    with pytest.raises(RunError, match=r"a line of measurements cannot be written to .*File too large"):
        fill()
    assert run.records()[0] == {"step": 0, "loss": 1.0}  # a line that was cut off is passed over
