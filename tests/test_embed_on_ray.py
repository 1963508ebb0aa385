"""Several workers of Ray: the same rows as one process, and errors as one line. Longer trials: tests/faults."""

from pathlib import Path

import numpy as np
import pytest
from images import write_images
from processes import begin, finish, processes_of_ray
from shards import pictures

from mcbeit.embed_on_ray import Worker, _check_same
from mcbeit.embed_task import EmbedConfig, Task, task_config
from mcbeit.embeddings import load_embeddings
from mcbeit.errors import EmbeddingError
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.sources import open_folder


def task(photos: Path, *assignments: str) -> Task:
    return Task("fake", task_config(EmbedConfig, str(photos), assignments))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos", {**pictures(150), "007b.jpg": b""})
    return tmp_path / "photos"


def test_embed__two_workers_give_the_rows_of_one_process(photos: Path, tmp_path: Path) -> None:
    """Relative paths too; images that cannot be read are listed as ever, and nothing of Ray stays."""
    before = set(processes_of_ray())
    common = ["embed", "fake", "photos", "batch_size=16"]
    finish(begin(*common, "-o", "one.npy", folder=tmp_path))
    finish(begin(*common, "-o", "two.npy", "--workers", "2", folder=tmp_path))
    for suffix in ("", ".ids.csv", ".json", ".unreadable.txt"):
        assert (tmp_path / f"two.npy{suffix}").read_bytes() == (tmp_path / f"one.npy{suffix}").read_bytes()
    assert len(load_embeddings(tmp_path / "two.npy").ids) == 150
    after = processes_of_ray()
    assert [title for pid, title in after.items() if title.startswith("ray::Worker") and pid not in before] == []


def test_worker__opens_images_and_model_once_and_makes_chunks(photos: Path) -> None:
    worker = Worker(task(photos, "batch_size=8"), num_cpus=2, has_gpu=False, folder=str(Path.cwd()))
    source = open_folder(photos)
    told = {"spec": FakeEncoder().spec.model_dump(mode="json"), "notes": (), "source": source.summary()}
    assert worker.facts() == told
    chunk = worker.embed(2, range(5, 10))
    assert (chunk.number, chunk.images.tolist()) == (2, [5, 6, 7, 9])
    assert [bad.image for bad in chunk.unreadable] == [8]
    np.testing.assert_allclose(chunk.rows, FakeEncoder().embed([source.name(i) for i in (5, 6, 7, 9)]), atol=1e-6)


def test_worker__mistakes_are_told_when_it_is_asked_first(tmp_path: Path) -> None:
    worker = Worker(task(tmp_path / "nowhere"), num_cpus=1, has_gpu=False, folder="/not/here")
    with pytest.raises(Exception, match="there is no image source at"):
        worker.facts()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"spec": {"dim": 3}, "source": {"images": 9}}, "a worker sees other images at the same place: 9, here 10;"),
        ({"spec": {"dim": 4}, "source": {"images": 10}}, "the workers have different models at the same place"),
    ],
)
def test_check_same__workers_with_other_files_are_refused(other: dict, message: str) -> None:
    good = {"spec": {"dim": 3}, "source": {"images": 10}}
    _check_same([good, good], {"images": 10})
    with pytest.raises(EmbeddingError, match=message):
        _check_same([good, other], {"images": 10})
