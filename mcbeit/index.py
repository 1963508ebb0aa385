"""An index of embeddings: the nearest vectors of a query, by faiss, with ids, paths and labels from SQLite.

    build_index(embeddings, "index")
    with Index.open("index") as index:
        hits = index.search(encoder.embed(["a.jpg"]), k=5, fingerprint=encoder.spec.fingerprint)[0]

Similarity is the cosine: all vectors are scaled to unit length. An index holds vectors of one encoder, and answers
vectors of the same encoder only. This is the only module of the folder that may import faiss, and does so when used.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

import mcbeit
from mcbeit.embeddings import Embeddings
from mcbeit.encoder import EncoderSpec, unit_length
from mcbeit.errors import VectorIndexError
from mcbeit.index_folder import (
    ITEMS,
    VECTORS,
    WHOLE_VECTORS,
    IndexManifest,
    check_files,
    check_files_exist,
    hash_files,
    new_folder_name,
    publish,
    read_manifest,
    staging,
)
from mcbeit.index_items import Item, Items, write_items
from mcbeit.index_kinds import POINTS_PER_CODE, IndexConfig, IndexKind
from mcbeit.index_rows import CHUNK, IndexRows, Vectors
from mcbeit.progress import Display

Queries = Float32[np.ndarray, "query dim"]
Rows = Int64[np.ndarray, "query hit"]
Scores = Float32[np.ndarray, "query hit"]


class Hit(NamedTuple):
    """A vector near to a query. `score` is the cosine of the two."""

    id: str
    score: float
    path: str | None
    label: str | None
    metadata: Mapping[str, Any] | None = None


def build_index(
    embeddings: Embeddings,
    out: str | Path,
    *,
    config: IndexConfig | None = None,
    paths: Sequence[str | None] | None = None,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
    force: bool = False,
) -> IndexManifest:
    """Build an index and write it to the folder `out`.

    `paths` say where the images are, if not where the embeddings say. Rows of nan are left out. With `force` an index
    that is there is replaced. Raises VectorIndexError for no vectors, vectors that are not finite, ids that are there
    twice, or a folder that holds something else.
    """
    config, out = config or IndexConfig(), Path(out).expanduser()
    rows = IndexRows(embeddings, paths, metadata)
    if not len(rows):
        raise VectorIndexError("there are no embeddings to build an index of")
    kind = config.chosen_kind(len(rows))
    with staging(out, force=force) as data, Display("index", len(rows)) as display:
        if rows.num_left_out:
            display.note(f"{rows.num_left_out} rows of images that could not be read are left out")
        write_items(data / ITEMS, rows.items())
        if kind == "ivfpq":
            _write_whole_vectors(data / WHOLE_VECTORS, rows)
        _write_faiss(data / VECTORS, rows, kind, config, display)
        manifest = IndexManifest(
            kind=kind,
            count=len(rows),
            encoder=embeddings.spec,
            config=config,
            folder=new_folder_name(),
            sha256=hash_files(data),
            versions={"mcbeit": mcbeit.__version__, "faiss": _faiss_version(), "numpy": np.__version__},
        )
        publish(data, out, manifest, force=force)
    return manifest


class Index:
    """An index that is open. Any number of threads may search it; vectors are mapped from the disk, not read."""

    def __init__(self, path: Path, manifest: IndexManifest) -> None:
        self.path, self.manifest = path, manifest
        data = path / manifest.folder
        check_files_exist(path, manifest)
        self._faiss = _read_faiss(data / VECTORS)
        self._whole = np.load(data / WHOLE_VECTORS, mmap_mode="r") if manifest.kind == "ivfpq" else None
        self._items = Items(data / ITEMS)
        self._parameters = _search_parameters(manifest)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> "Index":
        """Open an index; `verify` reads all of it and compares hashes. Raises VectorIndexError if it is not whole."""
        path = Path(path).expanduser()
        manifest = read_manifest(path)
        while True:
            try:
                if verify:
                    check_files(path, manifest)
                return cls(path, manifest)
            except VectorIndexError:
                latest = read_manifest(path)
                if latest.folder == manifest.folder:
                    raise
                manifest = latest  # it was replaced meanwhile

    @property
    def spec(self) -> EncoderSpec:
        """Of the encoder that all its vectors are of."""
        return self.manifest.encoder

    def __len__(self) -> int:
        return self.manifest.count

    def __enter__(self) -> "Index":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let its files go."""
        self._items.close()

    def check_encoder(self, spec_or_fingerprint: EncoderSpec | str) -> None:
        """Raise VectorIndexError unless vectors of this encoder may be compared with those of the index."""
        asked = spec_or_fingerprint
        fingerprint, name = (asked, "") if isinstance(asked, str) else (asked.fingerprint, f" '{asked.name}'")
        own = self.spec
        if fingerprint != own.fingerprint:
            raise VectorIndexError(
                f"the index '{self.path}' holds vectors of '{own.name}' ({own.pooling} pooling, layer {own.layer}, "
                f"{own.image_size} px; fingerprint {own.fingerprint[:12]}), the query is of another encoder{name} "
                f"(fingerprint {fingerprint[:12]}): their vectors cannot be compared. Ask with the same model and the "
                "same options, or build the index anew"
            )

    def search(self, vectors: Queries, k: int = 10, *, fingerprint: str) -> list[list[Hit]]:
        """The `k` nearest of each vector, the nearest first; fewer if the index, or what it looked into, has fewer.

        `fingerprint` is that of the encoder of `vectors`. Raises VectorIndexError if it is not that of the index.
        """
        self.check_encoder(fingerprint)
        if k < 1:
            raise VectorIndexError(f"k is {k}; ask for 1 hit or more")
        if vectors.shape[1] != self.spec.dim:
            raise VectorIndexError(f"the query has {vectors.shape[1]} numbers, vectors of the index {self.spec.dim}")
        if not np.isfinite(vectors).all():
            raise VectorIndexError("the query holds numbers that are not finite")
        if not len(vectors):
            return []
        rows, scores = self._nearest(unit_length(vectors), min(k, len(self)))
        items = self._items.rows(np.unique(rows[rows >= 0]).tolist())
        return [
            [_hit(items[row], score) for row, score in zip(*pair, strict=True) if row >= 0]
            for pair in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def contents(self) -> Iterator[tuple[list[Item], Vectors]]:
        """All items with their vectors of unit length, in pieces."""
        for start in range(0, len(self), CHUNK):
            end = min(start + CHUNK, len(self))
            whole = self._faiss.reconstruct_n(start, end - start) if self._whole is None else self._whole[start:end]
            yield self._items.range(start, end), np.asarray(whole)

    def _nearest(self, queries: Queries, k: int) -> tuple[Rows, Scores]:
        if self._whole is None:
            scores, rows = self._faiss.search(queries, k, params=self._parameters)
            return rows, scores
        candidates = min(k * self.manifest.config.rerank, len(self))
        rows = np.sort(self._faiss.search(queries, candidates, params=self._parameters)[1])  # a disk likes it in order
        return _rerank(queries, rows, self._whole, k)


def _rerank(
    queries: Queries, rows: Int64[np.ndarray, "query candidate"], whole: Vectors, k: int
) -> tuple[Rows, Scores]:
    """The best `k` of the rows by their exact scores; a row of -1 is none."""
    scores = np.stack([whole[mine] @ query for query, mine in zip(queries, rows, strict=True)])
    scores[rows < 0] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)


def _hit(item: Item, score: float) -> Hit:
    within = max(-1.0, min(1.0, score))  # rounding goes beyond
    return Hit(item.id, within, item.path, item.label, item.metadata)


def _write_whole_vectors(path: Path, rows: IndexRows) -> None:
    shape = (len(rows), rows.embeddings.spec.dim)
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    done = 0
    for chunk in rows.chunks():
        file[done : done + len(chunk)] = chunk
        done += len(chunk)
    file.flush()


def _write_faiss(path: Path, rows: IndexRows, kind: IndexKind, config: IndexConfig, display: Display) -> None:
    faiss = _import_faiss()
    if kind == "ivfpq":
        display.note(f"learning cells and codes from {config.num_training(len(rows))} vectors")
    index = _empty(faiss, rows, kind, config)
    for chunk in rows.chunks():
        index.add(chunk)
        display.update(display.done + len(chunk), kind)
    faiss.write_index(index, str(path))


def _empty(faiss: Any, rows: IndexRows, kind: IndexKind, config: IndexConfig) -> Any:
    count, dim = len(rows), rows.embeddings.spec.dim
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(dim, config.links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = config.build_width
        return graph
    lists, size = config.chosen_lists(count), config.chosen_code_bytes(dim)
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, lists, size, 8, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.max_points_per_centroid = POINTS_PER_CODE
    index.train(rows.sample(config.num_training(count)))
    return index


def _read_faiss(path: Path) -> Any:
    faiss = _import_faiss()
    mapped = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP)  # before faiss 1.11 inverted lists alone
    try:
        return faiss.read_index(str(path), mapped)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise VectorIndexError(f"'{path}' cannot be read: {reason}; build the index again") from error


def _search_parameters(manifest: IndexManifest) -> Any:
    """Of each call, not of the index: threads do not share them. A flat index has none."""
    faiss, config = _import_faiss(), manifest.config
    if manifest.kind == "hnsw":
        return faiss.SearchParametersHNSW(efSearch=config.search_width)
    if manifest.kind == "ivfpq":
        lists = config.chosen_lists(manifest.count)
        return faiss.SearchParametersIVF(nprobe=config.chosen_probes(lists))
    return None


def _faiss_version() -> str:
    return str(_import_faiss().__version__)


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise VectorIndexError("an index needs faiss: pip install 'mcbeit[cpu]'") from error
    return faiss
