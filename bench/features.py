"""The vectors of whole splits, made once and kept: tasks share them, and a run that was killed goes on.

What is kept lies at `CACHE/KEY/vectors.npy`, where KEY is a hash of all that the vectors depend on: the model's
fingerprint and preprocessing, its layers and pooling, how it is computed, which images there are, and what is done to
them before. While it grows it is a folder of chunks.
"""

import hashlib
import json
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from mcbeit.bench.data import NOTHING, BenchData
from mcbeit.bench.manifest import Manifest, Used, joined_manifest, make_manifest, used_images
from mcbeit.bench.pixels import PIXELS, PixelsEncoder
from mcbeit.bench.served_crew import ServedCrew
from mcbeit.bench.sweep import Column, SweepEncoder
from mcbeit.bench.treatment import TreatedSource, Treatment
from mcbeit.chunk_embedding import LocalCrew
from mcbeit.embed import PROMISE, Crew, Output, make
from mcbeit.embed_task import Task
from mcbeit.embeddings import load_embeddings
from mcbeit.encoder import PixelEncoder
from mcbeit.errors import BenchError, EmbeddingError
from mcbeit.ray_cluster import Scale
from mcbeit.served_encoder import ServedEncoder
from mcbeit.sources import ImageSource
from mcbeit.stop import StopRequest

FILE = "vectors.npy"


@dataclass(frozen=True)
class SplitTask(Task):
    """One split of the images of a benchmark, by one model, perhaps by several of its layers at once."""

    data: BenchData = NOTHING
    split: str = ""
    columns: tuple[Column, ...] = ()  # none: the embedding of the model
    treatment: Treatment | None = None  # of the images, before the model's own preprocessing

    def open_source(self) -> ImageSource:
        """See `Task`."""
        source = self.data.open(self.split)
        return source if self.treatment is None else TreatedSource(source, self.treatment)

    def open_encoder(self, threads: int | None = None) -> PixelEncoder:
        """See `Task`."""
        if self.model == PIXELS:
            return self.checked(PixelsEncoder(self.config.image_size))
        if not self.columns:
            return super().open_encoder(threads)
        config, runtime = self.encoder_config, self.runtime(threads)
        return self.checked(SweepEncoder.load(self.model, config, self.columns, **runtime))


@dataclass(frozen=True)
class Features:
    """The vectors of a split, in the order of its images; those that cannot be read are left out."""

    vectors: Float32[np.ndarray, "image dim"]  # memory-mapped
    labels: Int64[np.ndarray, " image"] | None
    names: list[str]
    classes: list[str]
    used: Used
    path: Path
    seconds: float = 0.0  # that it took to make them; 0 if they were there

    def images(self, source: ImageSource) -> Int64[np.ndarray, " image"]:
        """The numbers in the source of the images that the rows are of."""
        if len(source) == len(self.names):
            return np.arange(len(source))
        found, rest = [], iter(range(len(source)))
        for name in self.names:  # in the order of the source
            found.append(next(image for image in rest if source.name(image) == name))
        return np.array(found, np.int64)


@dataclass
class FeatureCache:
    """A folder of vectors."""

    folder: Path
    scale: Scale | None = None  # spread over actors of Ray
    stop: StopRequest = field(default_factory=lambda: StopRequest(PROMISE))
    manifests: dict[tuple[BenchData, str], Manifest] = field(default_factory=dict)

    def get(self, task: SplitTask, encoder: PixelEncoder) -> Features:
        """The vectors of a task by its encoder, made now if they are not there.

        Raises Interrupted if `stop` was asked for, DataError if too many images cannot be read, BenchError if the
        folder cannot be made, or if what is in it is damaged.
        """
        source = task.open_source()
        manifest = self.manifest(task.data, task.split)
        folder = self.folder / _key(task, encoder, manifest)
        output, seconds = Output(folder / FILE, task), 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BenchError(
                f"vectors cannot be kept in '{self.folder}': {error.strerror or error}; choose another -o or cache"
            ) from error
        if not output.check(resume=True):
            before = time.monotonic()
            with self._crew(task, source, encoder) as crew:
                make(output, source, crew, self.stop)
            seconds = time.monotonic() - before
        try:
            found = load_embeddings(folder / FILE)
        except EmbeddingError as error:
            raise BenchError(
                f"the vectors that were kept cannot be used ({error}); remove '{folder}', and go on with --resume"
            ) from error
        return Features(
            vectors=found.vectors,
            labels=found.labels,
            names=found.paths,
            classes=source.classes,
            used=used_images(source, found),
            path=folder / FILE,
            seconds=seconds,
        )

    def manifest(self, data: BenchData, split: str) -> Manifest:
        """Which images a split has, looked at once."""
        if (data, split) not in self.manifests:
            self.manifests[data, split] = make_manifest(data.open(split))
        return self.manifests[data, split]

    def whole_manifest(self, data: BenchData) -> Manifest:
        """Which images a shifted set has, in all its parts."""
        return joined_manifest([self.manifest(data, part) for part in data.shifted().parts])

    def _crew(self, task: SplitTask, source: ImageSource, encoder: PixelEncoder) -> AbstractContextManager[Crew]:
        if isinstance(encoder, ServedEncoder):
            return nullcontext(ServedCrew(encoder, source))
        if self.scale is None:
            return nullcontext(LocalCrew(task, source, encoder))
        from mcbeit.embed_on_ray import ray_crew

        return ray_crew(task, source.summary(), self.scale)


def _key(task: SplitTask, encoder: PixelEncoder, manifest: Manifest) -> str:
    """A name that changes with anything that may change the numbers."""
    computed = {name: getattr(task.config, name) for name in ("batch_size", "precision", "provider")}
    told = {
        "kind": type(encoder).__name__,
        "spec": encoder.spec.model_dump(mode="json"),
        "computed": computed,
        "manifest": manifest.model_dump(mode="json"),
    }
    if task.treatment is not None:
        told["treatment"] = task.treatment.describe()
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
