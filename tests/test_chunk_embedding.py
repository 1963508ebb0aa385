"""Decoding and computing side by side: the same rows whatever the threads."""

import threading
from pathlib import Path

import numpy as np
import pytest
from images import broken_images, write_images
from tiny import write_planes

from mcbeit.chunk_embedding import ChunkEmbedder, LocalCrew, Stopped, row_shape
from mcbeit.chunks import Plan
from mcbeit.embed_task import EmbedConfig, Task, task_config
from mcbeit.encoder import Pixels
from mcbeit.errors import EmbeddingError, EncoderError
from mcbeit.fake_encoder import FakeEncoder
from mcbeit.sources import open_folder


class Watched(FakeEncoder):
    """Notes the sizes of batches, and fails if two are computed at once or a given one comes."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self._fails_at, self._is_busy = fails_at, threading.Lock()

    def compute(self, pixels: Pixels, *, patches: bool = False) -> np.ndarray:
        assert self._is_busy.acquire(blocking=False)
        self.sizes.append(len(pixels))
        found = super().compute(pixels, patches=patches)
        self._is_busy.release()
        if len(self.sizes) == self._fails_at:
            raise EncoderError("the model broke")
        return found


def task(source: Path, *assignments: str, patches: bool = False) -> Task:
    return Task("fake", task_config(EmbedConfig, str(source), assignments), patches)


def crew(found: Task) -> LocalCrew:
    return LocalCrew(found, found.open_source())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("patches", [False, True])
def test_chunk_embedder__gives_what_the_encoder_gives(threads: int, patches: bool, shapes: Path) -> None:
    source, encoder = open_folder(shapes), FakeEncoder()
    embedder = ChunkEmbedder(source, encoder, patches=patches, batch_size=5, threads=threads)
    chunk = embedder.embed(3, range(2, 19))
    paths = [source.name(i) for i in range(2, 19)]
    wanted = encoder.patch_features(paths) if patches else encoder.embed(paths)
    np.testing.assert_allclose(chunk.rows, wanted, rtol=1e-6, atol=1e-6)
    assert (chunk.number, chunk.images.tolist(), chunk.unreadable) == (3, list(range(2, 19)), [])
    assert chunk.rows.shape[1:] == row_shape(encoder.spec, patches=patches)


def test_chunk_embedder__batches_are_full_without_images_that_cannot_be_read(tmp_path: Path, shapes: Path) -> None:
    source_folder = tmp_path / "mixed"
    for path in sorted(shapes.rglob("*.png"))[:7]:
        write_images(source_folder, {path.name: path.read_bytes()})
    write_images(source_folder, {"001-half.png": broken_images()["half.png"], "002-empty.jpg": b""})
    source, encoder = open_folder(source_folder), Watched()
    chunk = ChunkEmbedder(source, encoder, patches=False, batch_size=3, threads=2).embed(0, range(len(source)))
    assert encoder.sizes == [3, 3, 1]
    bad = {Path(source.name(image)).name: reason for image, reason in chunk.unreadable}
    assert bad == {"001-half.png": "the PNG data is truncated or corrupt", "002-empty.jpg": "the file is empty"}
    assert sorted([*chunk.images, *(image for image, _ in chunk.unreadable)]) == list(range(9))


class Planes(FakeEncoder):
    """The mean of each of five channels."""

    def __init__(self) -> None:
        super().__init__(dim=5, normalize=False)
        preprocess = self.spec.preprocess.model_copy(update={"mean": (0.0,) * 5, "std": (1.0,) * 5})
        self.spec = self.spec.model_copy(update={"preprocess": preprocess})

    def compute(self, pixels: Pixels, *, patches: bool = False) -> np.ndarray:
        return pixels.mean(axis=(1, 2))


def test_chunk_embedder__images_of_many_channels(tmp_path: Path) -> None:
    source = open_folder(write_planes(tmp_path / "planes"), channels=5)
    chunk = ChunkEmbedder(source, Planes(), patches=False, batch_size=7, threads=2).embed(0, range(24))
    is_bright = chunk.rows[:, 3] > chunk.rows[:, 0]
    assert [source.name(image).split("/")[-2] == "bright" for image in range(24)] == is_bright.tolist()
    assert chunk.unreadable == []


def test_chunk_embedder__stopped(shapes: Path) -> None:
    embedder = ChunkEmbedder(open_folder(shapes), FakeEncoder(), patches=False, batch_size=2, threads=1)
    embedder.stop()
    with pytest.raises(Stopped):
        embedder.embed(0, range(4))


def test_local_crew__makes_the_chunks_asked_for_in_order(shapes: Path) -> None:
    plan = Plan(24, 5)
    found = list(crew(task(shapes, "batch_size=2")).chunks(plan, [0, 2, 4], stop=lambda: False))
    assert [chunk.number for chunk in found] == [0, 2, 4]
    assert [image for chunk in found for image in chunk.images] == [*range(5), *range(10, 15), *range(20, 24)]


def test_local_crew__may_be_asked_again(shapes: Path) -> None:
    made, plan = crew(task(shapes)), Plan(24, 12)
    first, second = (np.concatenate([c.rows for c in made.chunks(plan, range(2), lambda: False)]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_local_crew__makes_nothing_more_after_a_stop(shapes: Path) -> None:
    made: list[int] = []
    for chunk in crew(task(shapes)).chunks(Plan(24, 1), range(24), stop=lambda: len(made) >= 3):
        made.append(chunk.number)
    assert made == [0, 1, 2]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("chunk", "decode"))]


def test_local_crew__an_error_of_the_encoder_is_told(shapes: Path) -> None:
    made = crew(task(shapes, "batch_size=4"))
    made.encoder = Watched(fails_at=2)
    with pytest.raises(EncoderError, match="the model broke"):
        list(made.chunks(Plan(24, 8), range(3), stop=lambda: False))


def test_task__other_channels_than_the_model_are_refused_before_the_work(shapes: Path) -> None:
    with pytest.raises(EmbeddingError, match=r"fake takes images of 3 channels, data\.channels is 5; set data\.ch"):
        task(shapes, "data.channels=5").open_encoder()


@pytest.mark.parametrize(
    ("model", "assignment", "message"),
    [
        ("fake", "precision=bf16", "the fake encoder is not computed by precision; .* that it takes: none"),
        ("fake", "pooling=cls", "pooling: the fake encoder has no model; it takes image_size and normalize"),
        ("timm:test_vit", "provider=cpu", "a model in torch is not computed by provider; .* threads, device, prec"),
    ],
)
def test_task__options_of_another_kind_of_model_are_refused(
    model: str, assignment: str, message: str, shapes: Path
) -> None:
    config = task_config(EmbedConfig, str(shapes), [assignment])
    with pytest.raises(EncoderError, match=message):
        Task(model, config).open_encoder()


def test_task__the_fake_encoder_takes_its_two_choices(shapes: Path) -> None:
    spec = task(shapes, "image_size=48", "normalize=false").open_encoder(threads=4).spec
    assert (spec.name, spec.image_size, spec.normalize, spec.grid) == ("fake", 48, False, (3, 3))
