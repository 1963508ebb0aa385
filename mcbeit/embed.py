"""`mcbeit embed`: a whole source into a file of vectors, in constant memory; killed at any point, it goes on."""

import math
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mcbeit.chunk_embedding import LocalCrew, Stop, row_shape
from mcbeit.chunks import Chunk, ChunkFolder, Plan, make_plan, open_chunks, writing
from mcbeit.corrupt import is_readable
from mcbeit.embed_task import Task
from mcbeit.embedding_files import check_format, write_embeddings
from mcbeit.embeddings import Block, Description, Unreadables, companion, companions, describe
from mcbeit.encoder import EncoderSpec
from mcbeit.errors import DataError, EmbeddingError, Interrupted
from mcbeit.progress import Display
from mcbeit.ray_cluster import Scale
from mcbeit.sources import FileSource, ImageSource, source_notes
from mcbeit.stop import StopRequest

PROMISE = "finished chunks of images are kept; a second signal does not wait"


@runtime_checkable
class Crew(Protocol):
    """What makes chunks."""

    spec: EncoderSpec
    notes: tuple[str, ...]  # of the encoder

    def chunks(self, plan: Plan, numbers: Iterable[int], stop: Stop) -> Generator[Chunk]:
        """The chunks of these numbers, in any order; none after `stop` says so."""
        ...


@dataclass(frozen=True)
class Embedded:
    """What a command has written."""

    description: Description
    unreadable_list: Path | None
    is_old: bool = False  # it was complete before

    def sentence(self, out: Path) -> str:
        """For people."""
        found, shape = self.description, "x".join(map(str, self.description.row_shape))
        text = f"{out}: {'complete already, ' * self.is_old}{found.num_rows} rows of {found.what} ({shape})"
        if found.num_unreadable:
            become = "are left out" if found.unreadable == "drop" else "are empty rows"
            text += f"; {found.num_unreadable} images cannot be read and {become}"
        return text if self.unreadable_list is None else f"{text}; see {self.unreadable_list}"


@dataclass(frozen=True)
class Output:
    """A file of embeddings that is to be made."""

    path: Path
    task: Task
    unreadable: Unreadables = "drop"

    @property
    def partial(self) -> Path:
        """The folder of finished chunks."""
        return companion(self.path, ".partial")

    def job(self, source: ImageSource, spec: EncoderSpec) -> dict[str, Any]:
        """What the rows are made of: a command goes on with those of the same job alone."""
        return {
            "model": spec.model_dump(mode="json"),
            "images": source.summary(),
            "what": self.task.what,
            "batch_size": self.task.config.batch_size,
            "precision": self.task.config.precision,
            "chunk_size": self.plan(source, spec).chunk_size,
        }

    def plan(self, source: ImageSource, spec: EncoderSpec) -> Plan:
        """How the images are cut into chunks."""
        row_bytes = 4 * math.prod(row_shape(spec, patches=self.task.patches))
        return make_plan(len(source), row_bytes=row_bytes, batch_size=self.task.config.batch_size)

    def check(self, *, resume: bool) -> bool:
        """Whether it is there and complete, and that is fine. Raises EmbeddingError if something is in the way."""
        check_format(self.path, self.task.what)
        if not self.path.parent.is_dir():
            raise EmbeddingError(f"there is no folder '{self.path.parent}' to write '{self.path.name}' to; make it")
        if self.partial.exists() and not resume:
            raise EmbeddingError(
                f"'{self.path}' was begun already: go on with --resume, or remove the folder '{self.partial}'"
            )
        if resume and (self.path.exists() or self.partial.exists()):
            return self.path.exists()
        if taken := [file for file in (self.path, *companions(self.path)) if file.exists()]:
            raise EmbeddingError(f"'{taken[0]}' exists already; choose another -o, or remove it")
        return False


def embed(
    output: Output, *, resume: bool = False, scale: Scale | None = None, stop: StopRequest | None = None
) -> Embedded:
    """Embed every image of the task's source, and write the file.

    Raises Interrupted if `stop`, which listens to signals, has been asked for; EmbeddingError, DataError and others for
    what a user can mend.
    """
    is_complete = output.check(resume=resume)
    stop = stop or StopRequest(PROMISE)
    source = output.task.open_source()
    with _crew(output.task, source, scale) as crew:
        if is_complete:
            return _complete(output, source, crew.spec)
        return make(output, source, crew, stop)


@contextmanager
def _crew(task: Task, source: ImageSource, scale: Scale | None) -> Iterator[Crew]:
    if scale is None:
        yield LocalCrew(task, source)
        return
    from mcbeit.embed_on_ray import ray_crew

    with ray_crew(task, source.summary(), scale) as crew:
        yield crew


def _complete(output: Output, source: ImageSource, spec: EncoderSpec) -> Embedded:
    """A file that is there, if it is what would be made. Raises EmbeddingError if not."""
    found = describe(output.path)
    wanted = (spec, source.summary(), output.task.what, output.unreadable)
    if (found.spec, found.source, found.what, found.unreadable) != wanted:
        raise EmbeddingError(
            f"'{output.path}' is complete, with {found.num_rows} rows of {found.what} by {found.spec.name} of "
            f"{found.place}, but by other options or of other images than now; choose another -o, or remove it"
        )
    if output.partial.exists():  # it was killed at the very end
        with open_chunks(output.partial, output.plan(source, spec), output.job(source, spec), out=output.path) as old:
            old.remove()
    listed = companion(output.path, ".unreadable.txt")
    return Embedded(found, listed if listed.exists() else None, is_old=True)


def make(output: Output, source: ImageSource, crew: Crew, stop: StopRequest) -> Embedded:
    """All of `embed` but opening and checking."""
    plan = output.plan(source, crew.spec)
    with (
        open_chunks(output.partial, plan, output.job(source, crew.spec), out=output.path) as chunks,
        stop.listening(),
    ):
        chunks.forget_mended(source, is_readable)
        _embed_missing(output, source, crew, chunks, stop)
        found = _assemble(output, source, crew.spec, chunks, stop)
        chunks.remove()
    return found


def _embed_missing(output: Output, source: ImageSource, crew: Crew, chunks: ChunkFolder, stop: StopRequest) -> None:
    before, start = chunks.num_done, time.monotonic()
    made = crew.chunks(chunks.plan, chunks.missing(), stop)
    with Display("embed", len(source), done=before) as display, closing(made):
        for note in (*crew.notes, *source_notes(source)):
            display.note(note)
        if before:
            display.note(f"{before} of {len(source)} images are done already")
        _check_readable(output, source, chunks)
        for chunk in made:
            chunks.add(chunk)
            if chunk.unreadable:
                first = chunk.unreadable[0]
                display.warn(f"some images cannot be read ('{source.name(first.image)}': {first.reason})")
                _check_readable(output, source, chunks)
            rate = (chunks.num_done - before) / (time.monotonic() - start)
            display.update(chunks.num_done, f"{rate:,.1f} images/s")
    _check_stop(output, source, chunks, stop)


def _check_stop(output: Output, source: ImageSource, chunks: ChunkFolder, stop: StopRequest) -> None:
    if stop():
        raise Interrupted(
            f"stopped; {chunks.num_done} of {len(source)} images are kept; go on with the same command and --resume "
            f"({output.path})",
            stop.signal,
        )


def _check_readable(output: Output, source: ImageSource, chunks: ChunkFolder) -> None:
    """Raise DataError if more images cannot be read than data.max_corrupt_fraction allows."""
    lost = sum(damage.num_lost for damage in source.damaged)
    bad, total, allowed = chunks.num_unreadable + lost, len(source) + lost, output.task.config.data.max_corrupt_fraction
    if bad > allowed * total:
        listed = chunks.path / "unreadable.txt"
        chunks.write_list(listed, source)
        raise DataError(
            f"{bad} of {total} images cannot be read, more than data.max_corrupt_fraction={allowed:g} allows; {listed} "
            "lists them with reasons. Mend them or allow a larger fraction, and go on with --resume"
        )


def _assemble(
    output: Output, source: ImageSource, spec: EncoderSpec, chunks: ChunkFolder, stop: StopRequest
) -> Embedded:
    """Put the chunks together in the order of the images, and list those that have no row."""
    readable = sum(chunks.num_rows.values())
    if not readable:
        raise DataError(f"none of the {len(source)} images can be read, such as '{source.name(0)}'")
    shape = row_shape(spec, patches=output.task.patches)
    description = Description(
        what=output.task.what,
        num_rows=readable if output.unreadable == "drop" else len(source),
        row_shape=shape,
        spec=spec,
        place=output.task.config.data.required_source(),
        source=source.summary(),
        num_unreadable=chunks.num_unreadable,
        unreadable=output.unreadable,
        classes=None if source.labels is None else source.classes,
    )
    listed = companion(output.path, ".unreadable.txt")
    with writing(output.path):
        if chunks.num_unreadable or source.damaged:
            chunks.write_list(listed, source)
        else:
            listed.unlink(missing_ok=True)  # of another time
        write_embeddings(output.path, description, _blocks(output, source, chunks, stop))
    return Embedded(description, listed if listed.exists() else None)


def _blocks(output: Output, source: ImageSource, chunks: ChunkFolder, stop: StopRequest) -> Iterator[Block]:
    """The chunks as rows of the file, with empty ones if these are wanted."""
    for chunk in chunks.read():
        _check_stop(output, source, chunks, stop)
        images, rows = chunk.images, chunk.rows
        is_there = np.ones(len(images), bool)
        if output.unreadable == "empty" and chunk.unreadable:
            images = np.array(chunks.plan.images(chunk.number), np.int64)
            is_there = np.isin(images, chunk.images)
            rows = np.full((len(images), *chunk.rows.shape[1:]), np.nan, np.float32)
            rows[is_there] = chunk.rows
        paths = [_text(source.name(image)) for image in images.tolist()]
        ids = [_text(_id(source, name)) for name in paths]
        yield Block(ids, paths, None if source.labels is None else source.labels[images], rows, is_there)


def _id(source: ImageSource, name: str) -> str:
    """The path below the folder, if the source is one: it stays the same when the folder is moved."""
    return name.removeprefix(source.root.rstrip("/") + "/") if isinstance(source, FileSource) else name


def _text(name: str) -> str:
    """A name as Unicode; bytes of it that are none are written as \\xNN."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
