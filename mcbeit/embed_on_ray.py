"""From images to rows by several processes: actors of Ray, here or on a cluster, which take chunks from one queue."""

import os
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mcbeit.chunk_embedding import AT_ONCE, POLL_SECONDS, ChunkEmbedder, Stop
from mcbeit.chunks import Chunk, Plan
from mcbeit.data import auto_workers
from mcbeit.embed_task import Task
from mcbeit.encoder import EncoderSpec
from mcbeit.errors import EmbeddingError, McbeitError
from mcbeit.ray_cluster import Scale, ray_cluster, worker_resources

MAX_RETRIES = 3  # of a chunk whose worker has died under it
MAX_DECODERS = 8


class Worker:
    """An actor: it opens model and images when it is asked first, and after every restart."""

    def __init__(self, task: Task, num_cpus: int, has_gpu: bool, folder: str) -> None:
        self.task, self.num_cpus, self.has_gpu = task, num_cpus, has_gpu
        self._lock = threading.Lock()
        self._opened: ChunkEmbedder | None = None
        if Path(folder).is_dir():  # paths in the task are relative to it
            os.chdir(folder)

    def facts(self) -> dict[str, Any]:
        """What its vectors and its images are."""
        embedder = self._open()
        encoder = embedder.encoder
        return {
            "spec": encoder.spec.model_dump(mode="json"),
            "notes": encoder.notes,
            "source": embedder.source.summary(),
        }

    def embed(self, number: int, images: range) -> Chunk:
        """The rows of a chunk."""
        return self._open().embed(number, images)

    def _open(self) -> ChunkEmbedder:
        with self._lock:
            if self._opened is None:
                data = self.task.config.data
                automatic = max(1, min(MAX_DECODERS, self.num_cpus // 2))
                self._opened = ChunkEmbedder(
                    self.task.open_source(),
                    self.task.open_encoder(None if self.has_gpu else self.num_cpus),
                    patches=self.task.patches,
                    batch_size=self.task.config.batch_size,
                    threads=automatic if data.num_workers == "auto" else auto_workers(data),
                )
            return self._opened


class RayCrew:
    """Actors, as what makes chunks."""

    def __init__(self, ray: Any, actors: list[Any], spec: EncoderSpec, notes: tuple[str, ...]) -> None:
        self.spec, self.notes = spec, notes
        self._ray, self._actors = ray, actors

    def chunks(self, plan: Plan, numbers: Iterable[int], stop: Stop) -> Generator[Chunk]:
        """These chunks as they get finished; none after `stop` says so. Raises EmbeddingError if workers die of one."""
        rest = iter(numbers)
        waiting: dict[Any, Any] = {}

        def give_work(actor: Any) -> None:
            if (number := next(rest, None)) is not None:
                waiting[actor.embed.remote(number, plan.images(number))] = actor

        for actor in self._actors * AT_ONCE:
            give_work(actor)
        while waiting and not stop():
            for done in self._ray.wait(list(waiting), timeout=POLL_SECONDS)[0]:
                give_work(waiting.pop(done))
                with _plain_errors():
                    chunk = self._ray.get(done)
                yield chunk


@contextmanager
def ray_crew(task: Task, summary: dict[str, Any], scale: Scale) -> Iterator[RayCrew]:
    """Workers for as long as they are needed.

    `summary` is that of the source as this process sees it. Raises RunError without Ray, a cluster or room on it,
    EmbeddingError if workers see other images or another model, and what opening these raises.
    """
    with ray_cluster(scale) as (ray, _):
        resources = worker_resources(ray, scale)
        kind = ray.remote(
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU", 0),
            max_restarts=-1,
            max_task_retries=MAX_RETRIES,
            max_concurrency=AT_ONCE,
        )(Worker)
        has_gpu = bool(resources.get("GPU"))
        told = (task, int(resources["CPU"]), has_gpu, str(Path.cwd()))
        actors = [kind.remote(*told) for _ in range(scale.max_workers)]
        with _plain_errors():
            facts = ray.get([actor.facts.remote() for actor in actors])
        _check_same(facts, summary)
        try:
            yield RayCrew(ray, actors, EncoderSpec.model_validate(facts[0]["spec"]), facts[0]["notes"])
        finally:
            for actor in actors:
                ray.kill(actor)


def _check_same(facts: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    if others := [fact["source"] for fact in facts if fact["source"] != summary]:
        raise EmbeddingError(
            f"a worker sees other images at the same place: {others[0]['images']}, here {summary['images']}; put them "
            "where all machines see them, or name a URL"
        )
    if any(fact["spec"] != facts[0]["spec"] for fact in facts):
        raise EmbeddingError("the workers have different models at the same place; put it where all machines see it")


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of our own as they were raised in a worker, and one error for workers that die."""
    from ray.exceptions import RayActorError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, McbeitError):
            raise error.cause from error
        raise
    except RayActorError as error:
        raise EmbeddingError(
            f"a worker died {MAX_RETRIES + 1} times at the same images ({' '.join(str(error).split())[:300]}); it may "
            "have run out of memory: use fewer --workers or a smaller batch_size, and go on with --resume"
        ) from error
