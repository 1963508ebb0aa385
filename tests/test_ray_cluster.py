"""What is known of a Ray cluster before one is started: the request, the resources, processes and folders."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcbeit import ray_cluster
from mcbeit.errors import ConfigError, RunError
from mcbeit.ray_cluster import Scale, descendants, end, worker_resources
from mcbeit.temporary import temporary_folder

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


class Cluster:
    """A cluster that has something."""

    def __init__(self, **resources: float) -> None:
        self.resources = resources

    def cluster_resources(self) -> dict[str, float]:
        return self.resources


@pytest.mark.parametrize(("text", "bounds"), [("1", (1, 1)), ("16", (16, 16)), ("2-4", (2, 4))])
def test_scale__parses_a_number_or_a_range(text: str, bounds: tuple[int, int]) -> None:
    scale = Scale.parse(text, None, None)
    assert (scale.min_workers, scale.max_workers) == bounds


@pytest.mark.parametrize("text", ["0", "-1", "two", "4-2", "1-", ""])
def test_scale__refuses_anything_else(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--workers must be a number, or MIN-MAX .*, found '{text}'"):
        Scale.parse(text, None, None)


@pytest.mark.parametrize(
    ("cluster", "scale", "wanted"),
    [
        (Cluster(CPU=2.0), Scale(2, 2), {"CPU": 1}),
        (Cluster(CPU=8.0), Scale(2, 2), {"CPU": 4}),
        (Cluster(CPU=8.0), Scale(1, 2), {"CPU": 4}),  # there is room for both
        (Cluster(CPU=16.0, GPU=8.0), Scale(8, 8), {"CPU": 2, "GPU": 1}),
        (Cluster(CPU=16.0, GPU=8.0), Scale(4, 4, gpus_per_worker=0), {"CPU": 4}),
        (Cluster(CPU=128.0, GPU=16.0), Scale(16, 16, address="auto"), {"CPU": 1, "GPU": 1}),
    ],
)
def test_worker_resources__follow_the_cluster(cluster: Any, scale: Scale, wanted: dict[str, float]) -> None:
    assert worker_resources(cluster, scale) == wanted


@pytest.mark.parametrize(
    ("cluster", "scale", "message"),
    [
        (Cluster(CPU=2.0), Scale(3, 3), "3 workers with 1 CPU each do not fit this machine, which has 2 CPU, 0 GPU"),
        (Cluster(CPU=2.0), Scale(3, 3), "use --workers 2"),
        (Cluster(CPU=64.0, GPU=4.0), Scale(8, 8, address="auto"), "with 1 CPU, 1 GPU each do not fit the cluster"),
        (Cluster(CPU=64.0, GPU=4.0), Scale(8, 8, address="auto"), "which has 64 CPU, 4 GPU; use --workers 4"),
        (Cluster(CPU=4.0), Scale(2, 2, gpus_per_worker=1), "which has 4 CPU, 0 GPU; use --gpus-per-worker 0"),
    ],
)
def test_worker_resources__too_much_is_one_error(cluster: Any, scale: Scale, message: str) -> None:
    with pytest.raises(RunError) as error:
        worker_resources(cluster, scale)
    assert message in str(error.value)


def test_end__kills_what_does_not_end_by_itself() -> None:
    before = set(descendants(os.getpid()))
    child = subprocess.Popen(SLEEP)
    assert set(descendants(os.getpid())) - before == {child.pid}
    end({child.pid}, patience_seconds=0.1)
    assert child.wait() == -9


def test_temporary_folder__goes_and_takes_those_of_killed_processes_along(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for owner in (gone.pid, os.getpid()):
        (tmp_path / f"mcbeit-run-{owner}-abc").mkdir()
    (tmp_path / f"mcbeit-other-{gone.pid}-abc").mkdir()
    with temporary_folder("run", tmp_path) as folder:
        assert folder.is_dir()
        assert not (tmp_path / f"mcbeit-run-{gone.pid}-abc").exists()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted([f"mcbeit-other-{gone.pid}-abc", f"mcbeit-run-{os.getpid()}-abc"])


def test_session_parent__is_short_enough_for_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder, wanted in ((str(tmp_path), "/tmp"), ("/var/tmp", "/var/tmp")):
        monkeypatch.setattr(ray_cluster.tempfile, "gettempdir", lambda folder=folder: folder)
        assert str(ray_cluster._session_parent()) == wanted


def test_ray_cluster__without_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        RunError, match=r"several workers need Ray, which is not installed: pip install 'mcbeit\[ray\]'"
    ):
        ray_cluster.ray_cluster(Scale(1, 1)).__enter__()


def test_ray_cluster__where_nobody_listens_says_so() -> None:
    with pytest.raises(RunError, match=r"there is no Ray cluster at --address 127\.0\.0\.1:1 \(.*refused\); start one"):
        ray_cluster.ray_cluster(Scale(1, 1, address="127.0.0.1:1")).__enter__()
