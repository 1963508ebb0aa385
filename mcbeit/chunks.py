"""Rows on their way into a file of embeddings: each chunk of images is a file of its own, there whole or not at all.

`OUT.partial/` holds `job.json`, which tells what the rows are, and `NUMBER.safetensors` per finished chunk. A command
that is killed loses the chunks that it was at; the next one makes those that are missing. Which images are a chunk, and
which of them are computed together, depends on neither: the rows are the same to the bit.
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mcbeit.atomic import write_bytes, write_json
from mcbeit.config import flatten
from mcbeit.errors import EmbeddingError
from mcbeit.sources import ImageSource

MIN_IMAGES = 64  # in a chunk: what a kill may cost per worker
MAX_CHUNKS = 4096  # files in a folder, as long as chunks stay below MAX_BYTES
MAX_BYTES = 32 * 2**20  # of the rows of a chunk, which are kept in memory
SUFFIX = ".safetensors"


class Unreadable(NamedTuple):
    """An image that has no row, and why."""

    image: int  # its number in the source
    reason: str


class Chunk(NamedTuple):
    """The rows of images that follow each other in the source."""

    number: int
    images: Int64[np.ndarray, " row"]  # the number of each row's image, ascending
    rows: Float32[np.ndarray, "row ..."]
    unreadable: list[Unreadable]


class Plan(NamedTuple):
    """How images are cut into chunks."""

    num_images: int
    chunk_size: int  # images

    @property
    def num_chunks(self) -> int:
        """The last one may be smaller."""
        return -(-self.num_images // self.chunk_size)

    def images(self, number: int) -> range:
        """The images of a chunk."""
        return range(number * self.chunk_size, min((number + 1) * self.chunk_size, self.num_images))


def make_plan(num_images: int, *, row_bytes: int, batch_size: int) -> Plan:
    """Chunks of whole batches, as far as MAX_BYTES allows, and not too many of them."""
    most = max(1, MAX_BYTES // row_bytes)
    wanted = min(max(MIN_IMAGES, -(-num_images // MAX_CHUNKS)), most)
    whole = -(-wanted // batch_size) * batch_size
    return Plan(num_images, whole if whole <= most else most - most % batch_size or most)


class ChunkFolder:
    """The finished chunks of one job. Made by `open_chunks`."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan
        self.num_done = 0  # images of finished chunks, those that cannot be read included
        self.num_unreadable = 0  # of them
        self.num_rows: dict[int, int] = {}
        self.unreadable: dict[int, list[Unreadable]] = {}
        for file in sorted(path.glob(f"*{SUFFIX}")):
            with contextlib.suppress(SafetensorError, OSError, ValueError, KeyError):  # damaged: it is made again
                self._note(_read(file))

    def missing(self) -> list[int]:
        """The chunks that are to be made."""
        return [number for number in range(self.plan.num_chunks) if number not in self.num_rows]

    def add(self, chunk: Chunk) -> None:
        """Keep a chunk. Raises EmbeddingError if the disk does not take it."""
        bad = json.dumps([list(one) for one in chunk.unreadable])
        tensors = {"images": chunk.images, "rows": np.ascontiguousarray(chunk.rows)}
        with writing(self.path):
            write_bytes(self._file(chunk.number), save(tensors, metadata={"unreadable": bad}))
        self._note(chunk)

    def read(self) -> Iterator[Chunk]:
        """All chunks in their order."""
        for number in range(self.plan.num_chunks):
            yield _read(self._file(number))

    def forget_mended(self, source: ImageSource, is_readable: Callable[[ImageSource, int], bool]) -> None:
        """Drop the chunks with an image that could not be read and now can be."""
        for number, bad in list(self.unreadable.items()):
            if any(is_readable(source, image) for image, _ in bad):
                self._file(number).unlink()
                self.num_done -= len(self.plan.images(number))
                self.num_unreadable -= len(bad)
                del self.num_rows[number], self.unreadable[number]

    def write_list(self, path: Path, source: ImageSource) -> None:
        """A line per unreadable image, and per damaged shard: its name, a tab, the reason."""
        found = [(damage.name, damage.reason) for damage in source.damaged]
        found += [(source.name(image), reason) for n in sorted(self.unreadable) for image, reason in self.unreadable[n]]
        text = "".join(f"{name}\t{reason}\n" for name, reason in found)
        with writing(path):
            write_bytes(path, text.encode(errors="surrogateescape"))

    def remove(self) -> None:
        """Remove the folder, once its rows are elsewhere."""
        shutil.rmtree(self.path)

    def _note(self, chunk: Chunk) -> None:
        self.num_done += len(self.plan.images(chunk.number))
        self.num_unreadable += len(chunk.unreadable)
        self.num_rows[chunk.number] = len(chunk.images)
        if chunk.unreadable:
            self.unreadable[chunk.number] = chunk.unreadable

    def _file(self, number: int) -> Path:
        return self.path / f"{number:08d}{SUFFIX}"


@contextlib.contextmanager
def open_chunks(path: Path, plan: Plan, job: Mapping[str, Any], *, out: Path) -> Iterator[ChunkFolder]:
    """The folder for as long as it is used, made if need be; one process has it at a time.

    Raises EmbeddingError if its rows are those of another job, or if another process is at work on it.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("a")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EmbeddingError(f"another command is at work on '{out}'; wait for it, or choose another -o") from error
        told = json.loads(json.dumps(job))
        if (file := path / "job.json").exists():
            _check_same(flatten(json.loads(file.read_text(encoding="utf-8"))), flatten(told), path, out)
        else:
            with writing(path):
                write_json(file, told)
        yield ChunkFolder(path, plan)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what a disk says into one EmbeddingError."""
    try:
        yield
    except OSError as error:
        raise EmbeddingError(
            f"'{path}' cannot be written to: {error.strerror or error}; make room or choose another place, and go on "
            "with --resume"
        ) from error


def _check_same(before: dict[str, Any], now: dict[str, Any], path: Path, out: Path) -> None:
    others = [key for key in (before | now) if before.get(key) != now.get(key)]
    if others:
        lines = "".join(f"\n  {key}: {before.get(key)} there, {now.get(key)} now" for key in others[:8])
        raise EmbeddingError(
            f"'{path}' holds the beginning of another job; go on with its own options, choose another -o than "
            f"'{out}', or remove the folder:{lines}"
        )


def _read(file: Path) -> Chunk:
    with safe_open(file, framework="numpy") as tensors:
        bad = json.loads((tensors.metadata() or {})["unreadable"])
        images, rows = tensors.get_tensor("images"), tensors.get_tensor("rows")
    return Chunk(int(file.stem), images, rows, [Unreadable(*one) for one in bad])
