"""From what a person names - files of embeddings, models, sources, images - to embeddings that an index takes."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mcbeit.config import Config, override, validate
from mcbeit.embed import Output, embed
from mcbeit.embed_task import StreamConfig, Task, task_config
from mcbeit.embeddings import Embeddings, load_embeddings
from mcbeit.encoder import encoder_config, load_encoder
from mcbeit.errors import ConfigError, VectorIndexError
from mcbeit.index import Index
from mcbeit.index_kinds import IndexConfig


class IndexSections(Config):
    """The sections that assignments may set."""

    index: IndexConfig = IndexConfig()


def index_config(assignments: Sequence[str]) -> tuple[IndexConfig, list[str]]:
    """The config of the assignments to the section index, and the other assignments. Raises ConfigError."""
    mine = [assignment for assignment in assignments if assignment.startswith("index.")]
    found = validate(IndexSections, override({}, mine), origin="the index").index
    return found, [assignment for assignment in assignments if assignment not in mine]


@contextmanager
def embeddings_of(
    places: Sequence[str], assignments: Sequence[str], *, beside: Path
) -> Iterator[tuple[Embeddings, list[str]]]:
    """The embeddings of a file, or those of a model and a source, and a line per image that cannot be read.

    The latter are in a file beside `beside` meanwhile.
    """
    if len(places) == 1:
        _refuse(assignments, f"'{places[0]}' is read as a file of embeddings")
        yield load_embeddings(places[0]), []
        return
    model, source = places
    task = Task(model, task_config(StreamConfig, source, assignments))
    with tempfile.TemporaryDirectory(prefix=f".{beside.name}.", dir=beside.absolute().parent) as folder:
        out = Path(folder) / "vectors.npy"
        unread = embed(Output(out, task)).unreadable_list
        yield load_embeddings(out), [] if unread is None else unread.read_text(encoding="utf-8").splitlines()


def queries_of(places: Sequence[str], model: str | None, assignments: Sequence[str], index: Index) -> Embeddings:
    """The queries of image files, by a model, or of files of embeddings; those of another encoder are refused."""
    if not places:
        raise ConfigError("name a query: an image file, with --model, or a file of embeddings")
    if model is not None:
        encoder = load_encoder(model, encoder_config(assignments))
        index.check_encoder(encoder.spec)
        return Embeddings(list(places), list(places), encoder.embed(places), encoder.spec)
    _refuse(assignments, "without --model queries are files of embeddings")
    parts = [load_embeddings(place) for place in places]
    for part in parts:
        index.check_encoder(part.spec)
    return parts[0] if len(parts) == 1 else _joined(parts)


def _joined(parts: Sequence[Embeddings]) -> Embeddings:
    ids = [identity for part in parts for identity in part.ids]
    paths = [path for part in parts for path in part.paths]
    return Embeddings(ids, paths, np.concatenate([part.vectors for part in parts]), parts[0].spec)


def _refuse(assignments: Sequence[str], why: str) -> None:
    if assignments:
        raise VectorIndexError(f"{why}, so {' '.join(assignments)} has no meaning here; leave it out, or name a model")
